"""Change the class of images with a class-conditional model: encode with their own class, decode with another.

    python pipelines_examples/likelihood/editing.py --model pfgm-mnist --data mnist-parquet/test.parquet \\
        --train_data mnist-parquet/train.parquet

The script prints the relative error of images that are encoded and decoded with their own class, the share of edited
images for which a classifier predicts the target class, and the correlation between the brightness of edited and
original images. It saves a grid: in each of the first rows an image and its versions in all classes, in the last rows
an image and its versions with the latent at temperatures from 0.5 to 1.5.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from diffusers_pfgm import HemisphereLatents, PFGMEditingPipeline
from diffusers_pfgm.examples.classifier import (
    load_conditional_pipeline,
    load_labelled_images,
    make_classifier,
    predict_classes,
    train_classifier,
)
from diffusers_pfgm.physics import with_temperature
from diffusers_pfgm.plots.image_grid import save_image_grid
from diffusers_pfgm.training.run.option_types import positive
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.utils.output_file import image_file

TEMPERATURES = (0.5, 1.5)
NUM_TEMPERATURE_ROWS = 2


def select_images(labels: torch.Tensor, num_classes: int, per_class: int) -> torch.Tensor:
    """Return the indices of the first `per_class` images of each class, class by class.

    Raises:
        ValueError: if there are fewer images of a class.
    """
    indices = [(labels == label).nonzero().flatten()[:per_class] for label in range(num_classes)]
    too_few = [label for label, rows in enumerate(indices) if len(rows) < per_class]
    if too_few:
        raise ValueError(f"`--data` has fewer than {per_class} images of the classes {too_few}. Lower `--per_class`.")
    return torch.cat(indices)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a class-conditional pipeline")
    parser.add_argument("--data", required=True, help="images with labels to edit, on which the model was not trained")
    parser.add_argument("--train_data", help="other images with labels, to train a classifier that checks the classes")
    parser.add_argument("--epochs", type=positive, default=1, help="number of epochs for training the classifier")
    parser.add_argument("--per_class", type=positive, default=1, help="number of images of each class to edit")
    parser.add_argument(
        "--num_inference_steps", type=positive, default=40, help="steps of encoding, and of decoding with the own class"
    )
    parser.add_argument("--step_tolerance", type=float, default=1e-3, help="relative tolerance of each of these steps")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="tolerance of the adaptive solver for decoding with other classes"
    )
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="scale of guidance to the target class")
    parser.add_argument("--output", type=image_file, default=Path("editing.png"), help="file of the image grid")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    # 1. Load the model and the images
    pipe, id2label = load_conditional_pipeline(PFGMEditingPipeline, args.model)
    channels = pipe.unet.config.in_channels
    resolution = pipe.unet.config.sample_size
    num_classes = len(id2label)
    images, labels = load_labelled_images(args.data, resolution, channels, id2label)
    rows = select_images(labels, num_classes, args.per_class)
    images = images[rows] / 2 + 0.5
    labels = labels[rows]
    train_data = args.train_data and load_labelled_images(args.train_data, resolution, channels, id2label)
    options = {"num_inference_steps": args.num_inference_steps, "step_tolerance": args.step_tolerance}

    # 2. Encode and decode with the own class
    encoded = pipe.encode(images, labels, **options)
    decoded = pipe.decode(encoded.latents, labels, output_type="pt", **options)
    error = (decoded.images - images).flatten(1).norm(dim=1) / (2 * images - 1).flatten(1).norm(dim=1) * 2
    print(f"{len(images)} images, encoded with {encoded.nfe} network calls")
    print(f"Decoded with their own class: relative error {error.mean():.1e}")

    # 3. Decode with every class. The latents do not come from images of these classes, so a fixed step may be too long
    # for its implicit equation. The adaptive solver has no such limit.
    adaptive = {"tolerance": args.tolerance, "output_type": "pt"}
    targets = torch.arange(num_classes).repeat(len(images))
    latents = encoded.latents.repeat_interleave(num_classes, 0)
    edited = pipe.decode(latents, targets, guidance_scale=args.guidance_scale, **adaptive)
    own_labels = labels.repeat_interleave(num_classes)
    is_changed = targets != own_labels
    print(
        f"Decoded with every class: {len(targets)} images, {edited.nfe} network calls, guidance scale "
        f"{args.guidance_scale:g}"
    )
    if train_data:
        classifier = make_classifier(channels, resolution, num_classes)
        train_classifier(classifier, *train_data, args.epochs)
        accuracy = (predict_classes(classifier, images * 2 - 1) == labels).double().mean() * 100
        predicted = predict_classes(classifier, edited.images * 2 - 1)[is_changed]
        is_target = (predicted == targets[is_changed]).double().mean() * 100
        is_own = (predicted == own_labels[is_changed]).double().mean() * 100
        print(f"Accuracy of a classifier on the original images: {accuracy:.0f} %")
        print(f"Its prediction for {is_changed.sum()} images whose class was changed:")
        print(f"   the target class: {is_target:.0f} %, the original class: {is_own:.0f} %")
    original_brightness = images.flatten(1).mean(1).unsqueeze(1)
    edited_brightness = edited.images.flatten(1).mean(1).view(len(images), -1)
    pairs = torch.stack([original_brightness.expand_as(edited_brightness), edited_brightness]).flatten(1)[:, is_changed]
    print(f"Correlation between the brightness of edited and original images: {torch.corrcoef(pairs)[0, 1]:.2f}")

    # 4. Decode with the own class at several temperatures
    points = HemisphereLatents.from_latents(encoded.latents[:NUM_TEMPERATURE_ROWS])
    temperatures = torch.linspace(*TEMPERATURES, num_classes).tolist()
    scaled = [with_temperature(points, temperature).to_latents() for temperature in temperatures]
    tempered_labels = labels[:NUM_TEMPERATURE_ROWS].repeat_interleave(num_classes)
    tempered = pipe.decode(torch.stack(scaled, 1).flatten(0, 1), tempered_labels, **adaptive)
    grid_rows = [*zip(images, edited.images.split(num_classes), strict=True)]
    grid_rows += zip(images, tempered.images.split(num_classes), strict=False)
    grid = torch.cat([torch.cat([image[None], row]) for image, row in grid_rows])
    save_image_grid(args.output, grid, scale=max(1, 48 // resolution), columns=num_classes + 1)
    num_rows = min(NUM_TEMPERATURE_ROWS, len(images))
    print(f"Grid with a row for each image, and {num_rows} rows of temperatures: {args.output}")


if __name__ == "__main__":
    run_script(main)
