"""Measure whether a class-conditional model generates images of the requested classes.

    python pipelines_examples/data/class_accuracy.py --model pfgm-mnist --train_data mnist-parquet/train.parquet \\
        --test_data mnist-parquet/test.parquet

A classifier is trained on real images and predicts the classes of generated ones. The script prints the accuracy of
the classifier on real test images, and the share of generated images for which its prediction is the requested class,
in total and for each class. It also prints the Fréchet distance of the generated images to the test images in the
features of the classifier, and the mean distance of generated and of test images to their nearest training image, which
is smaller for a model that memorizes. It saves a grid of generated images with a row for each class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from diffusers_pfgm import PFGMPipeline
from diffusers_pfgm.examples.classifier import (
    load_conditional_pipeline,
    load_labelled_images,
    make_classifier,
    predict_classes,
    train_classifier,
)
from diffusers_pfgm.metrics.frechet_distance import FrechetDistance
from diffusers_pfgm.metrics.nearest_neighbors import nearest_distances
from diffusers_pfgm.plots.image_grid import save_image_grid
from diffusers_pfgm.training.data.order import evenly_spaced
from diffusers_pfgm.training.run.option_types import positive
from diffusers_pfgm.training.run.samples import draw_samples
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.utils.output_file import image_file

NUM_SHOWN = 10  # images of each class in the image grid


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a class-conditional pipeline")
    parser.add_argument("--train_data", required=True, help="real images with labels, to train the classifier on")
    parser.add_argument("--test_data", required=True, help="other real images with labels, to test the classifier on")
    parser.add_argument("--epochs", type=positive, default=3, help="number of epochs for training the classifier")
    parser.add_argument("--per_class", type=positive, default=100, help="number of images to generate of each class")
    parser.add_argument("--num_inference_steps", type=positive, default=20, help="number of steps of the pipeline")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="scale of guidance; 1 for no guidance")
    parser.add_argument("--output", type=image_file, default=Path("class-accuracy.png"), help="file of the image grid")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    pipe, id2label = load_conditional_pipeline(PFGMPipeline, args.model)
    channels = pipe.unet.config.in_channels
    resolution = pipe.unet.config.sample_size
    train_images, train_labels = load_labelled_images(args.train_data, resolution, channels, id2label)
    images, labels = load_labelled_images(args.test_data, resolution, channels, id2label)
    # Images are drawn first, since they need less time than the classifier to fail.
    requested = torch.arange(len(id2label)).repeat_interleave(args.per_class)
    samples = draw_samples(
        pipe, len(requested), args.num_inference_steps, class_labels=requested, guidance_scale=args.guidance_scale
    )

    classifier = make_classifier(channels, resolution, len(id2label))
    train_classifier(classifier, train_images, train_labels, args.epochs)
    accuracy = (predict_classes(classifier, images) == labels).double().mean().item()
    print(f"Accuracy of the classifier: {100 * accuracy:.2f} % of {len(images):,} real test images")
    is_requested = predict_classes(classifier, samples * 2 - 1) == requested
    accuracies = is_requested.view(len(id2label), -1).double().mean(1)
    print(
        f"Generated images of the requested class: {100 * accuracies.mean():.1f} % of {len(requested):,} images, "
        f"{args.num_inference_steps} steps each"
    )
    for name, share in zip(id2label.values(), accuracies.tolist(), strict=True):
        print(f"  {name}: {100 * share:.0f} %")
    distance = FrechetDistance(classifier[:-2], images)  # without dropout and the last layer
    floor = distance(train_images[evenly_spaced(len(train_images), len(samples))])
    print(f"Fréchet distance: {distance(samples * 2 - 1):.1f}, of as many training images {floor:.1f}")
    compared = (samples * 2 - 1, images[evenly_spaced(len(images), len(samples))])
    nearest = [nearest_distances(each, train_images)[0].mean() for each in compared]
    print(f"Distance to the nearest training image: {nearest[0]:.2f}, of as many test images {nearest[1]:.2f}")
    rows = samples.view(len(id2label), args.per_class, *samples.shape[1:])[:, :NUM_SHOWN].flatten(0, 1)
    save_image_grid(args.output, rows, scale=max(1, 64 // resolution), columns=min(NUM_SHOWN, args.per_class))
    print(f"Grid with a row for each class: {args.output}")


if __name__ == "__main__":
    run_script(main)
