"""Interpolate between held-out images along great circles between their latents on the hemisphere.

    python pipelines_examples/likelihood/interpolation.py --model demo-output/model --data demo-output/held-out.parquet

The script prints the relative errors of encoding and then decoding images, and of decoding and then encoding latents,
for fixed steps and for the adaptive solver. It prints the sliced Wasserstein distance to other real images of the
interpolated images, and for comparison that of straight lines between the images and that of real images. It saves a
grid in which each row leads from one image to another.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from diffusers_pfgm import PFGMEditingPipeline, PoissonFlow
from diffusers_pfgm.examples.images import load_images
from diffusers_pfgm.metrics.sliced_wasserstein import sliced_wasserstein
from diffusers_pfgm.plots.image_grid import save_image_grid
from diffusers_pfgm.training.run.option_types import integer, positive
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.utils.output_file import image_file


def print_round_trips(flow: PoissonFlow, x: torch.Tensor, latents: torch.Tensor, name: str, **options: Any) -> None:
    """Print the errors of encoding and decoding data (B, *), and of decoding and encoding latents (B, *).

    Args:
        flow: the flow.
        x: (B, *), data.
        latents: (B, *), latents.
        name: the name of the solver.
        **options: options of `flow.encode` and `flow.decode`.
    """
    encoded = flow.encode(x, **options)
    decoded = flow.decode(encoded.latents, **options)
    decoded_first = flow.decode(latents, **options)
    encoded_second = flow.encode(decoded_first.sample, **options)
    for round_trip, nfe, end, start in (
        ("image → latent → image", encoded.nfe + decoded.nfe, decoded.sample, x),
        ("latent → image → latent", decoded_first.nfe + encoded_second.nfe, encoded_second.latents, latents),
    ):
        error = (end - start).flatten(1).norm(dim=1) / start.flatten(1).norm(dim=1)
        print(f"   {name:<16} {round_trip:<24} {error.mean():.1e}, at most {error.max():.1e}, {nfe} network calls")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id of a pipeline")
    add("--data", required=True, help="images on which the model was not trained, a folder or a parquet file")
    add("--pairs", type=positive, default=8, help="number of pairs of images")
    add("--num", type=integer(3), default=9, help="number of images of a path, both ends included")
    add("--num_inference_steps", type=positive, default=50, help="number of fixed steps")
    add("--step_tolerance", type=float, default=1e-5, help="relative tolerance of a fixed step")
    add("--tolerance", type=float, default=1e-6, help="tolerance of the adaptive solver")
    add("--dtype", choices=("float32", "float64"), default="float32", help="dtype of the network")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device of the pipeline")
    add("--output", type=image_file, default=Path("interpolation.png"), help="file of the image grid")
    args = parser.parse_args(argv)

    dtype = getattr(torch, args.dtype)
    pipe = PFGMEditingPipeline.from_pretrained(args.model).to(args.device, dtype)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.unet.config.sample_size
    real = load_images(args.data, size, pipe.unet.config.in_channels).to(args.device, dtype)
    if len(real) <= args.pairs * args.num:
        raise ValueError(
            f"`--data` must have more than {args.pairs * args.num} images for `--pairs` {args.pairs} and `--num` "
            f"{args.num}, but has {len(real)}. Lower these, or pass more images."
        )
    real = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))]  # a folder is sorted by class
    first = real[: args.pairs]
    second = real[args.pairs : 2 * args.pairs]

    flow = PoissonFlow(pipe.unet, pipe.scheduler)
    generator = torch.Generator(args.device).manual_seed(0)
    latents = flow.scheduler.sample_prior(first.shape, generator, first.device, dtype)
    latents = latents * flow.scheduler.data_scale(flow.sigma_max)
    options = {"num_inference_steps": args.num_inference_steps, "step_tolerance": args.step_tolerance}
    labels = pipe.prepare_class_labels(None, args.pairs, real.device)  # no condition, as in `pipe.interpolate`
    print(f"Relative error of encoding and decoding {args.pairs} images, and of {args.pairs} latents, {args.dtype}:")
    print_round_trips(flow, first, latents, f"{args.num_inference_steps} steps", **options, **labels)
    print_round_trips(flow, first, latents, f"adaptive, {args.tolerance:g}", tolerance=args.tolerance, **labels)

    output = pipe.interpolate(first / 2 + 0.5, second / 2 + 0.5, args.num, output_type="pt", **options)
    rows = (output.images * 2 - 1).view(args.pairs, args.num, *output.images.shape[1:])
    weights = torch.linspace(0, 1, args.num, device=real.device, dtype=dtype).view(-1, 1, 1, 1)
    straight = torch.lerp(first.unsqueeze(1), second.unsqueeze(1), weights)
    # As many real images as interpolated ones without the ends, and the remaining ones to compare with
    real_images = real[2 * args.pairs : args.pairs * args.num]
    others = real[args.pairs * args.num :]
    images_by_name = {
        "by latents": rows[:, 1:-1].flatten(0, 1),
        "straight lines": straight[:, 1:-1].flatten(0, 1),
        "real images": real_images,
    }
    print(f"{args.pairs} paths of {args.num} images, {output.nfe} network calls")
    print(f"Sliced Wasserstein distance to {len(others)} other images:")
    for name, images in images_by_name.items():
        print(f"   {name:<15} {sliced_wasserstein(images, others):.3f}")
    save_image_grid(args.output, output.images, scale=max(1, 48 // size), columns=args.num)
    print(f"Grid with a row for each path: {args.output}")


if __name__ == "__main__":
    run_script(main)
