"""A Poisson flow on points in a plane: train a small network on two moons, draw samples and compute the density.

    python pipelines_examples/physics/point_cloud.py

The script prints the training loss, the sliced Wasserstein distance between samples and held-out points, the mean
log-likelihood of held-out points, and the integral of the density, which should be 1. The true density of the data is
known, and its log-likelihood is printed for comparison. A figure of samples and density is saved.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import diffusers_pfgm.examples  # noqa: F401 - names the extra if one of its packages is missing

# isort: split
import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_moons

from diffusers_pfgm import PoissonFlow
from diffusers_pfgm.examples.point_network import PointNetwork, make_scheduler, train_network
from diffusers_pfgm.metrics.sliced_wasserstein import sliced_wasserstein
from diffusers_pfgm.training.run.option_types import integer, number, positive
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.utils.output_file import figure_file

NOISE_STD = 0.1  # standard deviation of the noise around the moons, in units of the moons
HALF_SIDE = 4.0  # half side of the square on which the density is computed, in standard deviations


def moons_log_prob(points: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the true log-density of the moons at standardized points (K, 2), (K,) in nats.

    Args:
        points: (K, 2), the points after subtraction of `mean` and division by `scale`.
        mean: (2,), the mean of the data.
        scale: (2,), the standard deviation of the data.
    """
    arcs = torch.from_numpy(make_moons(4000, shuffle=False)[0])
    squares = torch.cdist(points.double() * scale + mean, arcs).square() / NOISE_STD**2
    log_kernels = -squares / 2 - math.log(2 * math.pi * NOISE_STD**2)
    return log_kernels.logsumexp(1) - math.log(len(arcs)) + scale.log().sum()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--aug_dim", type=float, default=64.0, help="augmented dimension D; 1 for PFGM, inf for a diffusion model")
    add("--sigma_min", type=float, default=0.03, help="noise level of the density, in standard deviations of the data")
    add("--sigma_max", type=float, default=50.0, help="largest noise level, in standard deviations of the data")
    add("--max_train_steps", type=positive, default=2500, help="number of training steps")
    add("--samples", type=positive, default=2000, help="number of samples, of held-out points and of other real points")
    add("--num_inference_steps", type=positive, default=20, help="number of sampling steps")
    add("--grid", type=integer(2), default=64, help="number of grid points along a side of the density")
    add("--tolerance", type=number(0, above_low=True), default=1e-3, help="tolerance of the log-densities in nats")
    add("--seed", type=integer(0), default=0, help="seed of data, weights and samples")
    add("--output", type=figure_file, default=Path("point-cloud.png"), help="file of the figure")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)

    raw = torch.from_numpy(make_moons(10_000 + 2 * args.samples, noise=NOISE_STD, random_state=args.seed)[0])
    mean, scale = raw.mean(0), raw.std(0)
    held_out, other, data = ((raw - mean) / scale).float().split([args.samples, args.samples, 10_000])

    scheduler = make_scheduler(args.aug_dim, args.sigma_min, args.sigma_max)
    network = PointNetwork(2)
    started = time.perf_counter()
    loss = train_network(network, data, scheduler, args.max_train_steps, seed=args.seed)
    seconds = time.perf_counter() - started
    print(f"D = {args.aug_dim:g}: {args.max_train_steps:,} training steps in {seconds:.0f} s, loss {loss:.4f}")

    flow = PoissonFlow(network, scheduler)
    samples = flow.sample((args.samples, 2), args.num_inference_steps, torch.Generator().manual_seed(args.seed))
    distance = sliced_wasserstein(samples.sample, held_out)
    real_distance = sliced_wasserstein(other, held_out)
    print(f"Sliced Wasserstein distance of {args.samples:,} samples ({samples.nfe} calls) to as many held-out points:")
    print(f"   {distance:.4f} standard deviations (other real points {real_distance:.4f})")

    likelihood = flow.log_prob(held_out, tolerance=args.tolerance)
    log_prob = likelihood.log_prob.mean()
    true_log_prob = moons_log_prob(held_out, mean, scale).mean()
    error = likelihood.truncation.mean()
    print(f"Mean log-likelihood of the held-out points, {likelihood.nfe} network calls:")
    print(f"   {log_prob:.4f} nats (true density {true_log_prob:.4f}), estimated numerical error {error:.1e}")

    axis = torch.linspace(-HALF_SIDE, HALF_SIDE, args.grid)
    points = torch.cartesian_prod(axis, axis)
    density = flow.log_prob(points, tolerance=args.tolerance).log_prob.exp().view(args.grid, args.grid)
    integral = torch.trapezoid(torch.trapezoid(density, axis), axis)
    print(f"Integral of the density over a square with sides of {2 * HALF_SIDE:g} standard deviations: {integral:.5f}")

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    left.scatter(*held_out.T, s=3, alpha=0.4, label="held out")
    left.scatter(*samples.sample.T, s=3, alpha=0.4, label=f"samples, {samples.nfe} calls")
    left.legend(frameon=False, markerscale=3)
    extent = (-HALF_SIDE, HALF_SIDE, -HALF_SIDE, HALF_SIDE)
    density_image = right.imshow(density.T, extent=extent, origin="lower", cmap="magma")
    right.set(title=f"density, integral {integral:.4f}", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
    figure.colorbar(density_image, ax=right)
    figure.savefig(args.output, dpi=110)
    print(f"Samples and density: {args.output}")


if __name__ == "__main__":
    run_script(main)
