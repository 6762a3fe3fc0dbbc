"""Generate from your own images without training: each is a charge, and their exact field draws.

    python pipelines_examples/generate_without_training.py --images photos --resolution 32

The field of finitely many charges ends on the charges, so this recalls images rather than inventing them. It shows
what a network is trained to follow, and is the limit that its solver is measured against.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.plots.image_grid import image_grid
from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.source import open_images


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder of image files, or a parquet file")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--num_inference_steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", type=int, default=4, help="pixels of the picture per pixel of an image")
    parser.add_argument("--output", type=Path, default=Path("generated-without-training.png"))
    args = parser.parse_args(argv)

    images = ImageTensors(open_images(args.images), args.resolution, center_crop=True)
    charges = images.__getitems__(range(len(images)))
    pipe = PFGMPipeline(unet=ChargeField(charges), scheduler=PoissonFlowScheduler()).to(args.device)
    generator = torch.Generator().manual_seed(args.seed)
    output = pipe(args.batch_size, args.num_inference_steps, generator, output_type="pt")
    image_grid(output.images, args.scale).save(args.output)
    print(f"{len(output.images)} images from the field of {len(charges)} charges, {output.nfe} calls: {args.output}")


if __name__ == "__main__":
    main()
