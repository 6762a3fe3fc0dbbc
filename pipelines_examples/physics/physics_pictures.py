"""Pictures of the physics, and numbers that say how exactly it holds: field lines, hemisphere, trajectories, films.

python pipelines_examples/physics_pictures.py
python pipelines_examples/physics_pictures.py --model demo-output/model

Without a model the field is the exact one of scikit-learn's digits, and nothing is trained.
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
from diffusers_pfgm.examples.digits import pictured_charges, split_digits
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

HEIGHTS = (1.0, 10.0, 100.0, 1000.0)  # at which latents are looked at on their way up


def latents_of(charges: torch.Tensor, count: int, generator: torch.Generator) -> dict[float, torch.Tensor]:
    """As many points from each charge follow its field lines up from σ = 0.01: where they are at each of `HEIGHTS`."""
    exponents = torch.linspace(-2, math.log10(HEIGHTS[-1]), 81, dtype=torch.float64)
    sigmas = [float(f"{10**e:.6g}") for e in exponents.tolist()]
    x = charges.flatten(1).double()[torch.arange(count) % len(charges)]
    x = x + PoissonKernel().sample(tuple(x.shape), sigmas[0], generator, dtype=torch.float64)
    prepared, found = Charges(charges), {}
    steps = integration_steps(lambda x, sigma: posterior_mean(x, sigma, prepared), x, sigmas)
    for (_, x), sigma in zip(steps, sigmas[1:], strict=True):
        if sigma in HEIGHTS:
            found[sigma] = x
    return found


def run_of(args: argparse.Namespace, digits: torch.Tensor) -> tuple[Trajectory, torch.Tensor | None]:
    """A recorded run of the model, or of the exact field, and the data whose law it should follow, if known."""
    generator, options = torch.Generator().manual_seed(args.seed), {}
    model: Any = ChargeField(digits)
    scheduler, shape = PoissonFlowScheduler(), (args.batch_size, *digits.shape[1:])
    if args.model:
        pipe = PFGMPipeline.from_pretrained(args.model)
        model, scheduler, size = pipe.unet, pipe.scheduler, pipe.unet.config.sample_size
        shape = (args.batch_size, pipe.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
        if pipe.unet.config.num_class_embeds:
            options["class_labels"] = torch.arange(args.batch_size) % pipe.unet.config.num_class_embeds
    scheduler.set_timesteps(args.num_inference_steps)
    latents = scheduler.sample_prior(shape, generator)
    trajectory = record_trajectory(model, scheduler, latents, args.num_inference_steps, **options)
    return trajectory, digits if shape[1:] == digits.shape[1:] else None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a trained pipeline, in place of the exact field of digits")
    parser.add_argument("--batch_size", type=int, default=256, help="trajectories")
    parser.add_argument("--num_inference_steps", type=int, default=20)
    parser.add_argument("--num_frames", type=int, default=30, help="of the film of points")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("physics-pictures"))
    args = parser.parse_args(argv)
    folder: Path = args.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(args.seed)
    digits = split_digits()[0]

    print("1. Field lines cross equipotentials at right angles")
    line, plane = pictured_charges(digits)
    plot_field_lines(line, plane).savefig(folder / "field-lines.png", dpi=110)
    lines = field_lines(dome(10.0, 300), plane)
    angles = normal_angles(lines, plane).rad2deg().flatten()
    print(f"   angle between line and normal: at most {angles.max():.3f}°, 99 % below {angles.quantile(0.99):.5f}°")
    near = (torch.cdist(lines[-1, :, :2], plane).amin(1) < 1e-3).double().mean() * 100
    print(f"   {near:.1f} % of {lines.shape[1]} lines end within 0.001 of a charge: {folder / 'field-lines.png'}\n")

    print("2. Latents of data become uniform on the hemisphere; so is the prior (Kolmogorov-Smirnov p-values)")
    prior = PoissonFlowScheduler().sample_prior((2000, *digits.shape[1:]), generator)
    tests = uniformity(prior, 40.0)
    print(
        f"   prior at σ = 40:           polar {tests['polar'].p_value:.2g}, elevation {tests['elevation'].p_value:.2g}"
    )
    for name, data in (("plane", plane), ("digits", digits[:600])):
        for sigma, x in latents_of(data, 100 * len(plane) if name == "plane" else len(data), generator).items():
            tests = uniformity(x, sigma)
            values = f"polar {tests['polar'].p_value:.2g}, elevation {tests['elevation'].p_value:.2g}"
            print(f"   {len(x)} latents, N = {x.shape[1]:>2}, at σ = {sigma:<4g}: {values}")
        plot_hemisphere(x, sigma).savefig(folder / f"hemisphere-{name}.png", dpi=110)
        print(f"   {folder / f'hemisphere-{name}.png'}")

    print(f"\n3. Trajectories of {args.model or 'the exact field of digits'}")
    trajectory, observed = run_of(args, digits)
    plot_trajectories(trajectory, observed).savefig(folder / "trajectories.png", dpi=110)
    norms = trajectory.norms.median(1).values
    print(f"   median norm {norms[0]:.1f} at σ = {trajectory.sigmas[0]:.3g}, {norms[-1]:.2f} at the end")
    if observed is not None:
        law = norm_quantiles(trajectory, observed)[1]
        print(f"   largest deviation of it from the law of the data: {((norms / law - 1).abs().max() * 100):.1f} %")
    print(f"   norm, radius and height: {folder / 'trajectories.png'}")
    if observed is not None or trajectory.states.ndim == 5:
        plot_denoised(trajectory).savefig(folder / "denoised.png", dpi=110)
        print(f"   x̂ and x on the way: {folder / 'denoised.png'}\n")

    print("4. Films")
    frames = animate_points(lines, plane, args.num_frames)
    save_gif(frames, folder / "points.gif")
    print(f"   {len(frames)} frames of points: {folder / 'points.gif'}")
    few = Trajectory(trajectory.scheduler, trajectory.sigmas, trajectory.states[:, :36], trajectory.denoised[:, :36])
    frames = animate_images(few)
    save_gif(frames, folder / "images.gif", frames_per_second=6)
    print(f"   {len(frames)} frames of images: {folder / 'images.gif'}")


if __name__ == "__main__":
    main()
