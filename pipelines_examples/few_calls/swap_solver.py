"""Swap the solver of a saved pipeline: the same model and starting points, one row of images for each solver.

python pipelines_examples/swap_solver.py --model demo-output/model --calls 10
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.plots.image_grid import image_grid

REFERENCE_STEPS = 200


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--calls", type=int, default=10, help="network calls that each solver may spend")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int, default=4, help="pixels of the picture per pixel of an image")
    parser.add_argument("--output", type=Path, default=Path("solvers.png"))
    args = parser.parse_args(argv)

    pipe = PFGMPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.unet.config.sample_size
    shape = (args.batch_size, pipe.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    latents = pipe.scheduler.sample_prior(shape, torch.Generator().manual_seed(args.seed))

    rows = {"multistep, many calls": pipe(num_inference_steps=REFERENCE_STEPS, latents=latents, output_type="pt")}
    for solver in ("multistep", "heun", "euler"):
        pipe.scheduler = PoissonFlowScheduler.from_config(pipe.scheduler.config, solver=solver)
        steps = (args.calls + 1) // 2 if solver == "heun" else args.calls  # n steps of Heun cost 2n − 1 calls
        rows[solver] = pipe(num_inference_steps=steps, latents=latents, output_type="pt")

    reference = rows["multistep, many calls"].images
    print(f"{'solver':<22} calls  distance to the first row (RMS, pixels in [0, 1])")
    for name, row in rows.items():
        distance = (row.images - reference).square().mean().sqrt().item()
        print(f"{name:<22} {row.nfe:5d}  {distance:.4f}")
    image_grid(torch.cat([row.images for row in rows.values()]), args.scale, columns=args.batch_size).save(args.output)
    print(f"Rows in this order: {args.output}")


if __name__ == "__main__":
    main()
