"""Generate images without training, from the exact field of your own images, each of which is a charge.

    python pipelines_examples/quickstart/generate_without_training.py --images photos --resolution 32

All field lines end at charges, so the samples reproduce the given images and no new ones. The example shows the field
that a network is trained on. The script saves a grid of the samples, and prints their number, the number of charges,
the number of field evaluations and the path of the grid.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.examples.images import load_images
from diffusers_pfgm.plots.image_grid import save_image_grid
from diffusers_pfgm.training.run.option_types import integer, positive
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.utils.output_file import image_file


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", required=True, help="folder of image files, or a parquet file")
    add("--resolution", type=positive, default=32, help="height and width of the images in pixels")
    add("--batch_size", type=positive, default=16, help="number of samples")
    add("--num_inference_steps", type=positive, default=20, help="number of steps of the pipeline")
    add("--seed", type=integer(0), default=0, help="seed of the samples")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device of the pipeline")
    add("--scale", type=positive, default=4, help="factor by which images are enlarged in the grid")
    add("--output", type=image_file, default=Path("generated-without-training.png"), help="file of the image grid")
    args = parser.parse_args(argv)

    charges = load_images(args.images, args.resolution)
    pipe = PFGMPipeline(unet=ChargeField(charges), scheduler=PoissonFlowScheduler()).to(args.device)
    generator = torch.Generator().manual_seed(args.seed)
    output = pipe(args.batch_size, args.num_inference_steps, generator, output_type="pt")
    save_image_grid(args.output, output.images, args.scale)
    print(f"{len(output.images)} images from the field of {len(charges)} charges, {output.nfe} calls: {args.output}")


if __name__ == "__main__":
    run_script(main)
