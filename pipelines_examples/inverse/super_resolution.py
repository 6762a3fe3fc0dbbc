"""Super-resolution: restore images from the means over blocks of their pixels by samples of the posterior.

    python pipelines_examples/inverse/super_resolution.py --model demo-output/model --data demo-output/held-out.parquet

The prior is a model or, without `--model`, the exact field of the training images. The script prints a table with a row
for each method: the mean PSNR of its samples, the PSNR of the samples' mean, the error of the samples' measurement
compared with one without noise, and the numbers of network calls and seconds. It saves a grid of images, whose second
row shows each measured pixel as a block.
"""

from __future__ import annotations

from diffusers_pfgm import SuperResolution
from diffusers_pfgm.examples.inverse_problems import compare_methods, make_parser, make_pipeline
from diffusers_pfgm.training.run.option_types import positive
from diffusers_pfgm.training.run.script_errors import run_script


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "super-resolution.png")
    parser.add_argument("--factor", type=positive, default=2, help="height and width of a block, in pixels")
    args = parser.parse_args(argv)
    compare_methods(args, *make_pipeline(args), SuperResolution(args.factor))


if __name__ == "__main__":
    run_script(main)
