"""Sharp images from blurred and noisy ones, by posterior samples of a model, or of the exact field of images.

python pipelines_examples/deblurring.py --model demo-output/model --data demo-output/held-out.parquet

Prints what `inpainting.py` does. The second row of the picture is the pseudo-inverse, which blows up the noise.
"""

from __future__ import annotations

import math

import torch

from diffusers_pfgm import Blur
from diffusers_pfgm.examples.inverse_problems import compare, make_parser, make_pipeline


def gaussian_kernel(std: float) -> torch.Tensor:
    """(h, h) weights of sum 1, to two standard deviations from the middle."""
    radius = math.ceil(2 * std)
    profile = torch.exp(-(torch.arange(-radius, radius + 1) / std).square() / 2)
    return profile.outer(profile) / profile.sum().square()


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "deblurring.png")
    parser.add_argument("--blur_std", type=float, default=0.8, help="standard deviation of the blur, in pixels")
    args = parser.parse_args(argv)
    compare(args, *make_pipeline(args), Blur(gaussian_kernel(args.blur_std)))


if __name__ == "__main__":
    main()
