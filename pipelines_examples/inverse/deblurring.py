"""Deblurring: restore sharp images from blurred and noisy ones by samples of the posterior.

    python pipelines_examples/inverse/deblurring.py --model demo-output/model --data demo-output/held-out.parquet

The prior is a model or, without `--model`, the exact field of the training images. The script prints a table with a row
for each method: the mean PSNR of its samples, the PSNR of the samples' mean, the error of the samples' measurement
compared with one without noise, and the numbers of network calls and seconds. It saves a grid of images, whose second
row is the pseudo-inverse, which amplifies the noise.
"""

from __future__ import annotations

import math

import torch

from diffusers_pfgm import Blur
from diffusers_pfgm.examples.inverse_problems import compare_methods, make_parser, make_pipeline
from diffusers_pfgm.training.run.option_types import number
from diffusers_pfgm.training.run.script_errors import run_script


def gaussian_kernel(std: float) -> torch.Tensor:
    """Return the weights (h, h) of a Gaussian blur, with the sum 1, cut off at two standard deviations."""
    radius = math.ceil(2 * std)
    weights = torch.exp(-(torch.arange(-radius, radius + 1) / std).square() / 2)
    return weights.outer(weights) / weights.sum().square()


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "deblurring.png")
    parser.add_argument(
        "--blur_std", type=number(0, above_low=True), default=0.8, help="standard deviation of the blur, in pixels"
    )
    args = parser.parse_args(argv)
    compare_methods(args, *make_pipeline(args), Blur(gaussian_kernel(args.blur_std)))


if __name__ == "__main__":
    run_script(main)
