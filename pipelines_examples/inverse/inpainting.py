"""Inpainting: fill in the hidden part of images by samples of the posterior.

    python pipelines_examples/inverse/inpainting.py --model demo-output/model --data demo-output/held-out.parquet

The prior is a model or, without `--model`, the exact field of the training images. The script prints a table with a row
for each method: the mean PSNR of its samples, the PSNR of the samples' mean, the error of the samples' measurement
compared with one without noise, and the numbers of network calls and seconds. It saves a grid of images. The chains of
latent sampling converge to the exact posterior of the model, and take about fifty times the network calls of guidance.
"""

from __future__ import annotations

import torch

from diffusers_pfgm import Inpainting
from diffusers_pfgm.examples.inverse_problems import compare_methods, make_parser, make_pipeline
from diffusers_pfgm.training.run.script_errors import run_script

OBSERVED = ("upper", "left", "border", "random")


def make_mask(observed: str, height: int, width: int, seed: int) -> torch.Tensor:
    """Return a mask (H, W), True at observed pixels: a half of the image, its border, or random pixels."""
    rows, columns = torch.arange(height).unsqueeze(1), torch.arange(width)
    if observed == "upper":
        return (rows < height // 2).expand(height, width)
    if observed == "left":
        return (columns < width // 2).expand(height, width)
    if observed == "random":
        return torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    inner_rows = (rows >= height // 4) & (rows < height - height // 4)
    inner_columns = (columns >= width // 4) & (columns < width - width // 4)
    return ~(inner_rows & inner_columns)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "inpainting.png")
    parser.add_argument("--observed", choices=OBSERVED, default="upper", help="observed part of an image")
    args = parser.parse_args(argv)
    pipe, train, truth = make_pipeline(args)
    height, width = truth.shape[2:]
    mask = make_mask(args.observed, height, width, args.seed)
    compare_methods(args, pipe, train, truth, Inpainting(mask))


if __name__ == "__main__":
    run_script(main)
