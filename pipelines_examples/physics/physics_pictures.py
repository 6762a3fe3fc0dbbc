"""Figures of the physics of a Poisson flow: field lines, hemisphere, trajectories and animations.

    python pipelines_examples/physics/physics_pictures.py
    python pipelines_examples/physics/physics_pictures.py --model demo-output/model

The script saves figures and animations in a folder, and prints numbers that test each of them: the angles between field
lines and equipotentials, p-values for the uniformity of latents on the hemisphere, and the deviation of the norms along
trajectories from their expected median. Without `--model` the trajectories follow the exact field of scikit-learn's
digits, and nothing is trained.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from diffusers_pfgm import (
    ChargeField,
    Charges,
    PFGMPipeline,
    PoissonFlowScheduler,
    PoissonKernel,
    posterior_mean,
)
from diffusers_pfgm.examples.digits import line_and_plane_charges, split_digits
from diffusers_pfgm.pipelines.inputs import latents_shape
from diffusers_pfgm.plots import (
    Trajectory,
    animate_images,
    animate_points,
    dome,
    field_lines,
    norm_quantiles,
    normal_angles,
    plot_denoised,
    plot_field_lines,
    plot_hemisphere,
    plot_trajectories,
    record_trajectory,
    save_gif,
    uniformity,
)
from diffusers_pfgm.solvers import integration_steps
from diffusers_pfgm.training.run.option_types import integer, positive
from diffusers_pfgm.training.run.script_errors import run_script

SIGMAS = (1.0, 10.0, 100.0, 1000.0)  # noise levels at which latents are tested for uniformity


def encode_to_sigmas(charges: torch.Tensor, count: int, generator: torch.Generator) -> dict[float, torch.Tensor]:
    """Follow the field lines of points near the charges from σ = 0.01 to the prior.

    Args:
        charges: (K, *), the charges.
        count: the number of points, distributed evenly over the charges.
        generator: the source of the points.

    Returns:
        The points (count, N) at each noise level of `SIGMAS`.
    """
    exponents = torch.linspace(-2, math.log10(SIGMAS[-1]), 81, dtype=torch.float64)
    step_sigmas = [float(f"{10**exponent:.6g}") for exponent in exponents.tolist()]
    x = charges.flatten(1).double()[torch.arange(count) % len(charges)]
    x = x + PoissonKernel().sample(tuple(x.shape), step_sigmas[0], generator, dtype=torch.float64)
    prepared = Charges(charges)
    latents = {}
    steps = integration_steps(lambda x, sigma: posterior_mean(x, sigma, prepared), x, step_sigmas)
    for (_, x), sigma in zip(steps, step_sigmas[1:], strict=True):
        if sigma in SIGMAS:
            latents[sigma] = x
    return latents


def record_run(args: argparse.Namespace, digits: torch.Tensor) -> tuple[Trajectory, torch.Tensor | None]:
    """Record a run of the model, or of the exact field of the digits.

    Returns:
        The trajectory, and the digits if the model's data have their shape, else None.

    Raises:
        ValueError: if the model's images have neither 1 nor 3 channels.
    """
    generator = torch.Generator().manual_seed(args.seed)
    model_kwargs = {}
    model: Any = ChargeField(digits)
    scheduler = PoissonFlowScheduler()
    shape = (args.batch_size, *digits.shape[1:])
    if args.model:
        pipe = PFGMPipeline.from_pretrained(args.model)
        model, scheduler = pipe.unet, PoissonFlowScheduler.from_scheduler(pipe.scheduler)
        shape = latents_shape(model.config, args.batch_size, None)
        if shape[1] not in (1, 3):
            raise ValueError(f"`--model` {args.model!r} has {shape[1]} channels. Pass a model of 1 or 3 channels.")
        if embeddings := pipe.unet.config.get("num_class_embeds"):
            model_kwargs["class_labels"] = torch.arange(args.batch_size) % embeddings
    scheduler.set_timesteps(args.num_inference_steps)
    latents = scheduler.sample_prior(shape, generator)
    trajectory = record_trajectory(model, scheduler, latents, args.num_inference_steps, **model_kwargs)
    return trajectory, digits if shape[1:] == digits.shape[1:] else None


def format_p_values(x: torch.Tensor, sigma: float) -> str:
    """Return the p-values of the uniformity tests of points (B, *) at noise level σ as text."""
    tests = uniformity(x, sigma)
    return f"polar {tests['polar'].p_value:.2g}, elevation {tests['elevation'].p_value:.2g}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a pipeline; by default the exact field of digits is used")
    parser.add_argument("--batch_size", type=positive, default=256, help="number of trajectories")
    parser.add_argument("--num_inference_steps", type=positive, default=20, help="number of steps of the trajectories")
    parser.add_argument("--num_frames", type=integer(2), default=30, help="number of frames of the animation of points")
    parser.add_argument("--seed", type=integer(0), default=0, help="seed of latents and noise")
    parser.add_argument("--output_dir", type=Path, default=Path("physics-pictures"), help="folder of the figures")
    args = parser.parse_args(argv)
    folder: Path = args.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(args.seed)
    digits = split_digits()[0]
    trajectory, data = record_run(args, digits)  # first, since a model may be refused

    print("1. Field lines cross equipotentials at right angles")
    line, plane = line_and_plane_charges(digits)
    plot_field_lines(line, plane).savefig(folder / "field-lines.png", dpi=110)
    lines = field_lines(dome(10.0, 300), plane)
    angles = normal_angles(lines, plane).rad2deg().flatten()
    print(f"   angle between line and normal: at most {angles.max():.3f}°, 99 % below {angles.quantile(0.99):.5f}°")
    share = (torch.cdist(lines[-1, :, :2], plane).amin(1) < 1e-3).double().mean() * 100
    print(f"   {share:.1f} % of {lines.shape[1]} lines end within 0.001 of a charge: {folder / 'field-lines.png'}\n")

    print(
        "2. Latents of data become uniform on the hemisphere at large σ, as the prior is (Kolmogorov-Smirnov p-values)"
    )
    prior = PoissonFlowScheduler().sample_prior((2000, *digits.shape[1:]), generator)
    print(f"   prior at σ = 40:           {format_p_values(prior, 40.0)}")
    for name, charges in (("plane", plane), ("digits", digits[:600])):
        count = 100 * len(plane) if name == "plane" else len(charges)
        for sigma, x in encode_to_sigmas(charges, count, generator).items():
            print(f"   {len(x)} latents, N = {x.shape[1]:>2}, at σ = {sigma:<4g}: {format_p_values(x, sigma)}")
        plot_hemisphere(x, sigma).savefig(folder / f"hemisphere-{name}.png", dpi=110)
        print(f"   {folder / f'hemisphere-{name}.png'}")

    print(f"\n3. Trajectories of {args.model or 'the exact field of digits'}")
    plot_trajectories(trajectory, data).savefig(folder / "trajectories.png", dpi=110)
    norms = trajectory.norms.median(1).values
    print(f"   median norm {norms[0]:.1f} at σ = {trajectory.sigmas[0]:.3g}, {norms[-1]:.2f} at the end")
    if data is not None:
        expected = norm_quantiles(trajectory, data)[1]
        deviation = (norms / expected - 1).abs().max() * 100
        print(f"   largest deviation of the median norm from that expected for the data: {deviation:.1f} %")
    print(f"   norms, augmented radii and radii of the hemisphere: {folder / 'trajectories.png'}")
    if data is not None or trajectory.states.ndim == 5:
        plot_denoised(trajectory).savefig(folder / "denoised.png", dpi=110)
        print(f"   x̂ and x at several noise levels: {folder / 'denoised.png'}\n")

    print("4. Animations")
    frames = animate_points(lines, plane, args.num_frames)
    save_gif(frames, folder / "points.gif")
    print(f"   {len(frames)} frames of points: {folder / 'points.gif'}")
    first_samples = Trajectory(
        trajectory.scheduler, trajectory.sigmas, trajectory.states[:, :36], trajectory.denoised[:, :36]
    )
    frames = animate_images(first_samples)
    save_gif(frames, folder / "images.gif", frames_per_second=6)
    print(f"   {len(frames)} frames of images: {folder / 'images.gif'}")


if __name__ == "__main__":
    run_script(main)
