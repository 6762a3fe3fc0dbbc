"""Fill in what a mask hides of images, by posterior samples of a model, or of the exact field of your own images.

python pipelines_examples/inpainting.py --model demo-output/model --data demo-output/held-out.parquet

Printed are each method's PSNR against the truth, that of the mean of its draws, how far its draws are from what is
measured without noise, and its network calls. Latent sampling ends in the model's own posterior, at some fifty times
the calls of guidance.
"""

from __future__ import annotations

import torch

from diffusers_pfgm import Inpainting
from diffusers_pfgm.examples.inverse_problems import compare, make_parser, make_pipeline

OBSERVED = ("upper", "left", "border", "random")


def make_mask(observed: str, height: int, width: int, seed: int) -> torch.Tensor:
    """(H, W), True where an image is observed: a half of it, or all but the centre."""
    rows, columns = torch.arange(height).unsqueeze(1), torch.arange(width)
    if observed == "upper":
        return (rows < height // 2).expand(height, width)
    if observed == "left":
        return (columns < width // 2).expand(height, width)
    if observed == "random":
        return torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    inner = (rows >= height // 4) & (rows < height - height // 4)
    return ~(inner & (columns >= width // 4) & (columns < width - width // 4))


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "inpainting.png")
    parser.add_argument("--observed", choices=OBSERVED, default="upper", help="which part of an image is known")
    args = parser.parse_args(argv)
    pipe, train, truth = make_pipeline(args)
    height, width = truth.shape[2:]
    mask = make_mask(args.observed, height, width, args.seed)
    compare(args, pipe, train, truth, Inpainting(mask))


if __name__ == "__main__":
    main()
