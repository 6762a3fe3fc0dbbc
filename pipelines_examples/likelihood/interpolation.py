"""Interpolate between held-out images by their latents: up to the hemisphere, along great circles, and down again.

python pipelines_examples/interpolation.py --model demo-output/model --data demo-output/held-out.parquet

Each row of the picture goes from one image to another. Printed are how exactly images return from their latents and
latents from their images, by fixed steps and by the adaptive solver, and how far the images on the way are from data,
against those on a straight line between the images themselves.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from diffusers_pfgm import PFGMEditingPipeline, PoissonFlow
from diffusers_pfgm.metrics.sliced_wasserstein import sliced_wasserstein
from diffusers_pfgm.plots.image_grid import image_grid
from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.source import open_images


def print_round_trips(flow: PoissonFlow, x: torch.Tensor, latents: torch.Tensor, name: str, **options: Any) -> None:
    """How far data and latents (B, *) are from themselves after a way there and back, relative to their norms."""
    up = flow.encode(x, **options)
    back = flow.decode(up.latents, **options)
    down = flow.decode(latents, **options)
    again = flow.encode(down.sample, **options)
    for way, nfe, end, start in (
        ("image → latent → image", up.nfe + back.nfe, back.sample, x),
        ("latent → image → latent", down.nfe + again.nfe, again.latents, latents),
    ):
        error = (end - start).flatten(1).norm(dim=1) / start.flatten(1).norm(dim=1)
        print(f"   {name:<16} {way:<24} {error.mean():.1e}, at most {error.max():.1e}, {nfe} calls")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--data", required=True, help="images that the model has not seen: a folder, or a parquet file")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--num", type=int, default=9, help="images of a row, ends included")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--step_tolerance", type=float, default=1e-5, help="how closely each fixed step is solved")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="of the adaptive solver")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of the network")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("interpolation.png"))
    args = parser.parse_args(argv)

    dtype = getattr(torch, args.dtype)
    pipe = PFGMEditingPipeline.from_pretrained(args.model).to(args.device, dtype)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.unet.config.sample_size
    data = ImageTensors(open_images(args.data), size, center_crop=True)
    real = data.__getitems__(range(len(data))).to(args.device, dtype)
    if len(real) <= args.pairs * args.num:
        raise ValueError(f"`--data` must have more than {args.pairs * args.num} images for these ways: {len(real)}.")
    first, second = real[: args.pairs], real[args.pairs : 2 * args.pairs]

    flow = PoissonFlow(pipe.unet, pipe.scheduler)
    generator = torch.Generator(args.device).manual_seed(0)
    latents = flow.scheduler.sample_prior(first.shape, generator, first.device, dtype)
    latents = latents * flow.scheduler.data_scale(flow.sigma_max)
    options = {"num_inference_steps": args.num_inference_steps, "step_tolerance": args.step_tolerance}
    print(f"Relative error after a way there and back, {args.pairs} images and latents, {args.dtype}")
    print_round_trips(flow, first, latents, f"{args.num_inference_steps} steps", **options)
    print_round_trips(flow, first, latents, f"adaptive, {args.tolerance:g}", tolerance=args.tolerance)

    output = pipe.interpolate(first / 2 + 0.5, second / 2 + 0.5, args.num, output_type="pt", **options)
    rows = (output.images * 2 - 1).view(args.pairs, args.num, *output.images.shape[1:])
    shares = torch.linspace(0, 1, args.num, device=real.device, dtype=dtype).view(-1, 1, 1, 1)
    straight = torch.lerp(first.unsqueeze(1), second.unsqueeze(1), shares)
    others, rest = real[2 * args.pairs : args.pairs * args.num], real[args.pairs * args.num :]
    print(
        f"{args.pairs} ways of {args.num} images, {output.nfe} calls; sliced Wasserstein distance to {len(rest)} others"
    )
    ways = {"by latents": rows[:, 1:-1].flatten(0, 1), "straight lines": straight[:, 1:-1].flatten(0, 1)}
    for name, images in (ways | {"real images": others}).items():
        print(f"   {name:<15} {sliced_wasserstein(images, rest):.3f}")
    image_grid(output.images, scale=max(1, 48 // size), columns=args.num).save(args.output)
    print(f"A row for each way: {args.output}")


if __name__ == "__main__":
    main()
