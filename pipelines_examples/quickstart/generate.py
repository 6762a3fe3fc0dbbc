"""Generate images with a saved pipeline, from a folder or the Hugging Face Hub.

    python pipelines_examples/quickstart/generate.py --model demo-output/model --batch_size 16 --num_inference_steps 20

The script saves a grid of the images, and prints their number, the number of network calls and the path of the grid.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from diffusers_pfgm import PFGMPipeline
from diffusers_pfgm.plots.image_grid import save_image_grid
from diffusers_pfgm.training.run.option_types import integer, positive
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.utils.output_file import image_file


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a pipeline")
    parser.add_argument("--batch_size", type=positive, default=16, help="number of images")
    parser.add_argument("--num_inference_steps", type=positive, default=20, help="number of steps of the pipeline")
    parser.add_argument("--class_labels", nargs="+", help="name of the class of all images, or of each")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="scale of guidance; 1 for no guidance")
    parser.add_argument(
        "--seed", type=integer(0), default=0, help="seed of the first image; image i has the seed `seed` + i"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device of the pipeline"
    )
    parser.add_argument("--scale", type=positive, default=4, help="factor by which images are enlarged in the grid")
    parser.add_argument("--output", type=image_file, default=Path("generated.png"), help="file of the image grid")
    args = parser.parse_args(argv)

    pipe = PFGMPipeline.from_pretrained(args.model).to(args.device)
    generators = [torch.Generator().manual_seed(args.seed + i) for i in range(args.batch_size)]
    output = pipe(
        args.batch_size,
        args.num_inference_steps,
        generators,
        output_type="pt",
        class_labels=args.class_labels,
        guidance_scale=args.guidance_scale,
    )
    save_image_grid(args.output, output.images, args.scale)
    print(f"{len(output.images)} images from {output.nfe} network calls: {args.output}")


if __name__ == "__main__":
    run_script(main)
