"""Images from means over blocks of their pixels, by posterior samples of a model, or of the exact field of images.

python pipelines_examples/super_resolution.py --model demo-output/model --data demo-output/held-out.parquet

Prints what `inpainting.py` does. The second row of the picture is the measurement, each of its pixels as a block.
"""

from __future__ import annotations

from diffusers_pfgm import SuperResolution
from diffusers_pfgm.examples.inverse_problems import compare, make_parser, make_pipeline


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "super-resolution.png")
    parser.add_argument("--factor", type=int, default=2, help="height and width of a block, in pixels")
    args = parser.parse_args(argv)
    compare(args, *make_pipeline(args), SuperResolution(args.factor))


if __name__ == "__main__":
    main()
