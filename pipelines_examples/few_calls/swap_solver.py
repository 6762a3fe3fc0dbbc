"""Compare the solvers of a saved pipeline at one number of network calls.

    python pipelines_examples/few_calls/swap_solver.py --model demo-output/model --calls 10

Each solver starts from the same latents. A model with classes draws all classes in turn. The script prints the number
of network calls of each solver and the difference of its images from a run of 200 calls, and saves a grid with a row of
images for each solver.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.pipelines.inputs import latents_shape
from diffusers_pfgm.plots.image_grid import save_image_grid
from diffusers_pfgm.training.run.option_types import integer, positive
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.utils.output_file import image_file

REFERENCE_STEPS = 200


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a pipeline")
    parser.add_argument("--calls", type=positive, default=10, help="number of network calls of each solver")
    parser.add_argument("--batch_size", type=positive, default=8, help="number of images of each solver")
    parser.add_argument("--seed", type=integer(0), default=0, help="seed of the latents")
    parser.add_argument("--scale", type=positive, default=4, help="factor by which images are enlarged in the grid")
    parser.add_argument("--output", type=image_file, default=Path("solvers.png"), help="file of the image grid")
    args = parser.parse_args(argv)

    pipe = PFGMPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = PoissonFlowScheduler.from_scheduler(pipe.scheduler)
    shape = latents_shape(pipe.unet.config, args.batch_size, None)
    latents = pipe.scheduler.sample_prior(shape, torch.Generator().manual_seed(args.seed))
    classes = pipe.config.id2label
    labels = classes and [index % len(classes) for index in range(args.batch_size)]
    options = {"latents": latents, "class_labels": labels, "output_type": "pt"}

    reference = pipe(num_inference_steps=REFERENCE_STEPS, **options)
    outputs = {"multistep, many calls": reference}
    for solver in ("multistep", "heun", "euler"):
        pipe.scheduler = PoissonFlowScheduler.from_config(pipe.scheduler.config, solver=solver)
        steps = (args.calls + 1) // 2 if solver == "heun" else args.calls  # n steps of Heun cost 2n − 1 calls
        outputs[solver] = pipe(num_inference_steps=steps, **options)

    print(f"{'solver':<22} calls  RMS difference from the first row (pixels in [0, 1])")
    for name, output in outputs.items():
        difference = (output.images - reference.images).square().mean().sqrt().item()
        print(f"{name:<22} {output.nfe:5d}  {difference:.4f}")
    images = torch.cat([output.images for output in outputs.values()])
    save_image_grid(args.output, images, args.scale, columns=args.batch_size)
    print(f"Grid with a row for each solver, in this order: {args.output}")


if __name__ == "__main__":
    run_script(main)
