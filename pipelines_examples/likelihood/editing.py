"""Turn images into those of other classes, by a class-conditional model: up under their own class, down under another.

python pipelines_examples/editing.py --model pfgm-mnist --data mnist-parquet/test.parquet \\
    --train_data mnist-parquet/train.parquet

A row of the picture is an image, then what it becomes as each class; the last rows keep the class, and take the latent
at temperatures from 0.5 to 1.5. Printed are how exactly images return under their own class, how often a classifier
of real images reads the class asked for, and how far the amount of ink carries over.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from diffusers_pfgm import HemisphereLatents, PFGMEditingPipeline
from diffusers_pfgm.examples.classifier import load, load_conditional, make_classifier, predict, train
from diffusers_pfgm.physics import with_temperature
from diffusers_pfgm.pipelines.inputs import PIL_MODES
from diffusers_pfgm.plots.image_grid import image_grid

TEMPERATURES = (0.5, 1.5)
COOLED = 2  # images of which the picture shows temperatures


def pick(labels: torch.Tensor, classes: int, per_class: int) -> torch.Tensor:
    """Indices of the first images of each class, class by class."""
    found = [(labels == label).nonzero().flatten()[:per_class] for label in range(classes)]
    short = [label for label, rows in enumerate(found) if len(rows) < per_class]
    if short:
        raise ValueError(f"`--data` has fewer than {per_class} images of the classes {short}. Lower `--per_class`.")
    return torch.cat(found)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a class-conditional pipeline")
    parser.add_argument("--data", required=True, help="images with labels to edit, which the model has not seen")
    parser.add_argument("--train_data", help="others, to train a classifier on; none is asked without")
    parser.add_argument("--epochs", type=int, default=1, help="of the classifier")
    parser.add_argument("--per_class", type=int, default=1, help="images of each class to edit")
    parser.add_argument("--num_inference_steps", type=int, default=40, help="up, and back under the own class")
    parser.add_argument("--step_tolerance", type=float, default=1e-3, help="how closely each of these steps is solved")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of the adaptive solver")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="to the class asked for")
    parser.add_argument("--output", type=Path, default=Path("editing.png"))
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    pipe, names = load_conditional(PFGMEditingPipeline, args.model)
    channels, resolution, classes = pipe.unet.config.in_channels, pipe.unet.config.sample_size, len(names)
    mode = PIL_MODES[channels]
    images, labels = load(args.data, resolution, mode, names)
    rows = pick(labels, classes, args.per_class)
    images, labels = images[rows] / 2 + 0.5, labels[rows]
    options = {"num_inference_steps": args.num_inference_steps, "step_tolerance": args.step_tolerance}

    encoded = pipe.encode(images, labels, **options)
    own = pipe.decode(encoded.latents, labels, output_type="pt", **options)
    error = (own.images - images).flatten(1).norm(dim=1) / (2 * images - 1).flatten(1).norm(dim=1) * 2
    print(
        f"{len(images)} images, {encoded.nfe} calls up; back under their own class: relative error {error.mean():.1e}"
    )

    # Down to what no image came from fixed steps may be too long to be undone: the adaptive solver needs no undoing.
    adaptive = {"tolerance": args.tolerance, "output_type": "pt"}
    targets = torch.arange(classes).repeat(len(images))
    latents = encoded.latents.repeat_interleave(classes, 0)
    swapped = pipe.decode(latents, targets, guidance_scale=args.guidance_scale, **adaptive)
    changed = targets != labels.repeat_interleave(classes)
    print(f"{len(targets)} edits, {swapped.nfe} calls down, guidance {args.guidance_scale:g}")
    if args.train_data:
        classifier = make_classifier(channels, resolution, classes)
        train(classifier, *load(args.train_data, resolution, mode, names), args.epochs)
        real = (predict(classifier, images * 2 - 1) == labels).double().mean() * 100
        read = predict(classifier, swapped.images * 2 - 1)[changed]
        asked = (read == targets[changed]).double().mean() * 100
        kept = (read == labels.repeat_interleave(classes)[changed]).double().mean() * 100
        print(f"A classifier reads {real:.0f} % of these images right; of {changed.sum()} swaps it reads")
        print(f"   the class asked for: {asked:.0f} %, the image's own: {kept:.0f} %")
    ink = [values.flatten(1).mean(1).view(len(images), -1) for values in (images, swapped.images)]
    pair = torch.stack([ink[0].expand_as(ink[1]), ink[1]]).flatten(1)[:, changed]
    print(f"Brightness of a swap and of its image: correlation {torch.corrcoef(pair)[0, 1]:.2f}")

    points = HemisphereLatents.from_latents(encoded.latents[:COOLED])
    temperatures = torch.linspace(*TEMPERATURES, classes).tolist()
    latents = torch.stack([with_temperature(points, each).to_latents() for each in temperatures], 1).flatten(0, 1)
    cooled = pipe.decode(latents, labels[:COOLED].repeat_interleave(classes), **adaptive)
    shown = [*zip(images, swapped.images.split(classes), strict=True)]
    shown += zip(images, cooled.images.split(classes), strict=False)
    grid = torch.cat([torch.cat([image[None], row]) for image, row in shown])
    image_grid(grid, scale=max(1, 48 // resolution), columns=classes + 1).save(args.output)
    print(f"A row for each image, and {min(COOLED, len(images))} of temperatures: {args.output}")


if __name__ == "__main__":
    main()
