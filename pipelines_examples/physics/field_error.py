"""Measure the error of models' normalized fields at held-out points, in bands of z.

    python pipelines_examples/physics/field_error.py --models pfgm-mnist pfgm-mnist-field \\
        --train_data mnist-parquet/train.parquet --test_data mnist-parquet/test.parquet

Test images are perturbed as in the paper (PFGM, arXiv 2209.11178, Algorithm 2). At each point the normalized field of a
model, which follows from its x̂ whatever the network predicts, is compared with the exact field of all training images.
The mean squared error over the N + 1 components is the paper's loss. The models must have D = 1 and no classes.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import torch

from diffusers_pfgm import Charges, PFGMPipeline, PoissonFlow, normalized_field, recommend_hyperparameters
from diffusers_pfgm.examples.images import load_images
from diffusers_pfgm.physics.perturbation import perturb
from diffusers_pfgm.training.data.order import evenly_spaced
from diffusers_pfgm.training.run.option_types import integer, positive
from diffusers_pfgm.training.run.script_errors import run_script

EDGES = [0.1, 0.3, 1.0, 3.0, 10.0]  # the edges of the bands of z
BATCH_SIZE = 100  # the number of points in a call of a network


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="folders or Hub ids of pipelines with D = 1")
    parser.add_argument("--train_data", required=True, help="images that generate the exact field")
    parser.add_argument("--test_data", required=True, help="other images, which are perturbed")
    parser.add_argument("--num_points", type=positive, default=2000, help="number of points")
    parser.add_argument("--seed", type=integer(0), default=0, help="seed of the perturbation")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device of the models and of the field"
    )
    args = parser.parse_args(argv)
    pipes = [PFGMPipeline.from_pretrained(name).to(args.device) for name in args.models]
    for name, pipe in zip(args.models, pipes, strict=True):
        if pipe.scheduler.config.get("aug_dim") != 1 or getattr(pipe.unet.config, "num_class_embeds", None):
            parser.error(f"--models: {name!r} must have aug_dim = 1 and no classes")
    shapes = [(pipe.unet.config.sample_size, pipe.unet.config.in_channels) for pipe in pipes]
    if len({*shapes}) > 1:
        parser.error(f"--models must have the same size and channels of images, but have {shapes}")
    size, channels = shapes[0]
    images, test_images = (load_images(name, size, channels) for name in (args.train_data, args.test_data))
    charges = Charges(images.to(args.device))
    mean_norm = images.flatten(1).norm(dim=1).mean().item()
    hyperparameters = recommend_hyperparameters(mean_norm, images[0].numel())
    test_images = test_images[evenly_spaced(len(test_images), args.num_points)]
    rows = torch.arange(args.num_points) % len(test_images)
    x, z = perturb(test_images[rows], hyperparameters, generator=torch.Generator().manual_seed(args.seed))
    z_min = max(pipe.scheduler.config.sigma_min for pipe in pipes)
    z_max = min(pipe.scheduler.config.sigma_max for pipe in pipes)
    inside = (z > z_min) & (z < z_max)
    x = x[inside].to(args.device)  # drawn on the CPU, so that the points are the same on every device
    z = z[inside].to(args.device)
    exact = normalized_field(x, z, charges)
    edges = [z_min, *(edge for edge in EDGES if z_min < edge < z_max), z_max]
    bands = torch.bucketize(z, torch.tensor(edges[1:-1], device=z.device))
    print(f"{len(x):,} points, exact field of {len(images):,} images\n")
    names = [f"{low:g} < z < {high:g}" for low, high in pairwise(edges)]
    print("| model | " + " | ".join(names) + " | all |")
    print("|---" * (len(names) + 2) + "|")
    for name, pipe in zip(args.models, pipes, strict=True):
        flow = PoissonFlow(pipe.unet, pipe.scheduler)
        with torch.no_grad():
            field = torch.cat(
                [
                    flow.normalized_field(points, radii)
                    for points, radii in zip(x.split(BATCH_SIZE), z.split(BATCH_SIZE), strict=True)
                ]
            )
        errors = (field - exact).square().mean(1)
        means = [errors[bands == band].mean().item() for band in range(len(names))]
        print(f"| {name} | " + " | ".join(f"{mean:.2e}" for mean in [*means, errors.mean().item()]) + " |")


if __name__ == "__main__":
    run_script(main)
