"""A flow on points in a plane: train a small network on two moons, draw from it, and integrate its density.

python pipelines_examples/point_cloud.py

The data's own density is known here, so that the likelihood of held-out points has a best value to compare with.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_moons

from diffusers_pfgm import PoissonFlow
from diffusers_pfgm.examples.point_network import PointNetwork, make_scheduler, train
from diffusers_pfgm.metrics.sliced_wasserstein import sliced_wasserstein

NOISE = 0.1  # standard deviation around the moons, in their own units
SIDE = 4.0  # of the square of the density, from -SIDE to SIDE in standard deviations


def moons_log_prob(points: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The density of the moons themselves at points (K, 2) in standard deviations, (K,) in nats."""
    arcs = torch.from_numpy(make_moons(4000, shuffle=False)[0])
    squares = torch.cdist(points.double() * scale + mean, arcs).square() / NOISE**2
    log_kernels = -squares / 2 - math.log(2 * math.pi * NOISE**2)
    return log_kernels.logsumexp(1) - math.log(len(arcs)) + scale.log().sum()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aug_dim", type=float, default=64.0, help="D; 1 for PFGM, inf for a diffusion model")
    parser.add_argument("--sigma_min", type=float, default=0.03, help="height of the density, in standard deviations")
    parser.add_argument("--sigma_max", type=float, default=50.0)
    parser.add_argument("--max_train_steps", type=int, default=2500)
    parser.add_argument("--samples", type=int, default=2000, help="drawn, held out, and real ones to compare with")
    parser.add_argument("--num_inference_steps", type=int, default=20)
    parser.add_argument("--grid", type=int, default=64, help="points of the density along a side")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of the log-densities, in nats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("point-cloud.png"))
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)

    raw = torch.from_numpy(make_moons(10_000 + 2 * args.samples, noise=NOISE, random_state=args.seed)[0])
    mean, scale = raw.mean(0), raw.std(0)
    held_out, other, data = ((raw - mean) / scale).float().split([args.samples, args.samples, 10_000])

    scheduler = make_scheduler(args.aug_dim, args.sigma_min, args.sigma_max)
    network, started = PointNetwork(2), time.perf_counter()
    loss = train(network, data, scheduler, args.max_train_steps, seed=args.seed)
    seconds = time.perf_counter() - started
    print(f"D = {args.aug_dim:g}: {args.max_train_steps:,} training steps in {seconds:.0f} s, loss {loss:.4f}")

    flow = PoissonFlow(network, scheduler)
    drawn = flow.sample((args.samples, 2), args.num_inference_steps, torch.Generator().manual_seed(args.seed))
    distance, floor = sliced_wasserstein(drawn.sample, held_out), sliced_wasserstein(other, held_out)
    print(f"Sliced Wasserstein distance of {args.samples:,} samples, {drawn.nfe} calls, to as many held-out points")
    print(f"   {distance:.4f} standard deviations (real points {floor:.4f})")

    found = flow.log_prob(held_out, tolerance=args.tolerance)
    truth = moons_log_prob(held_out, mean, scale).mean()
    print(f"Mean log-likelihood of the held-out points, {found.nfe} calls")
    print(f"   {found.log_prob.mean():.4f} nats (true density {truth:.4f}), truncation {found.truncation.mean():.1e}")

    axis = torch.linspace(-SIDE, SIDE, args.grid)
    points = torch.cartesian_prod(axis, axis)
    density = flow.log_prob(points, tolerance=args.tolerance).log_prob.exp().view(args.grid, args.grid)
    integral = torch.trapezoid(torch.trapezoid(density, axis), axis)
    print(f"Integral of the density over the square of {2 * SIDE:g} standard deviations: {integral:.5f}")

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    left.scatter(*held_out.T, s=3, alpha=0.4, label="held out")
    left.scatter(*drawn.sample.T, s=3, alpha=0.4, label=f"drawn, {drawn.nfe} calls")
    left.legend(frameon=False, markerscale=3)
    picture = right.imshow(density.T, extent=(-SIDE, SIDE, -SIDE, SIDE), origin="lower", cmap="magma")
    right.set(title=f"density, integral {integral:.4f}", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
    figure.colorbar(picture, ax=right)
    figure.savefig(args.output, dpi=110)
    print(f"Samples and density: {args.output}")


if __name__ == "__main__":
    main()
