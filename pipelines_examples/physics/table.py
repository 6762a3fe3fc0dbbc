"""A flow on the rows of a table: train a small network on standardised columns, draw rows, and tell likelihoods.

python pipelines_examples/table.py

The mean log-likelihood of held-out rows stands beside that of a Gaussian with the mean and covariance of the same
training rows, blurred to the flow's height as well, and each column's quantiles beside those of both and of real rows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer, load_wine

from diffusers_pfgm import PoissonFlow
from diffusers_pfgm.examples.point_network import PointNetwork, make_scheduler, train

TABLES = {"breast_cancer": load_breast_cancer, "wine": load_wine}
SHARES = torch.linspace(0.05, 0.95, 19)  # of the quantiles
SHOWN = 6  # columns of the picture, the most skewed


def fitted_gaussian(rows: torch.Tensor, height: float) -> torch.distributions.MultivariateNormal:
    """Of the mean and covariance of rows (K, N), with `height` as standard deviation of noise added to each column."""
    noise = height**2 * torch.eye(rows.shape[1], dtype=rows.dtype)
    return torch.distributions.MultivariateNormal(rows.mean(0), torch.cov(rows.T) + noise)


def quantile_differences(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Mean distance of the quantiles of each column, (N,)."""
    shares = SHARES.to(rows.dtype)
    return (rows.quantile(shares, dim=0) - others.quantile(shares, dim=0)).abs().mean(0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=tuple(TABLES), default="breast_cancer")
    parser.add_argument("--aug_dim", type=float, default=64.0, help="D; 1 for PFGM, inf for a diffusion model")
    parser.add_argument("--sigma_min", type=float, default=0.1, help="height of the density, in standard deviations")
    parser.add_argument("--sigma_max", type=float, default=50.0)
    parser.add_argument("--max_train_steps", type=int, default=1500)
    parser.add_argument("--dropout", type=float, default=0.2, help="what keeps so few rows from being learned by heart")
    parser.add_argument("--held_out", type=float, default=0.3, help="share of the rows")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--num_inference_steps", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of the log-densities, in nats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("table.png"))
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)

    table = TABLES[args.table]()
    raw = torch.from_numpy(table.data)
    order, count = torch.randperm(len(raw)), round(args.held_out * len(raw))
    mean, scale = raw[order[count:]].mean(0), raw[order[count:]].std(0)
    held_out, data = ((raw[order] - mean) / scale).float().split([count, len(raw) - count])

    scheduler = make_scheduler(args.aug_dim, args.sigma_min, args.sigma_max)
    columns = data.shape[1]
    network, started = PointNetwork(columns, dropout=args.dropout), time.perf_counter()
    loss = train(network, data, scheduler, args.max_train_steps, seed=args.seed)
    seconds = time.perf_counter() - started
    print(f"{args.table}: {len(data)} rows of {columns} columns to train on, {count} held out, D = {args.aug_dim:g}")
    print(f"{args.max_train_steps:,} training steps in {seconds:.0f} s, loss {loss:.4f}")

    flow, gaussian = PoissonFlow(network, scheduler), fitted_gaussian(data.double(), args.sigma_min)
    found = flow.log_prob(held_out, tolerance=args.tolerance)
    print(f"Mean log-likelihood of the held-out rows at sigma {args.sigma_min:g}, {found.nfe} calls")
    for name, values in (("flow", found.log_prob), ("Gaussian", gaussian.log_prob(held_out.double()))):
        print(f"   {name:<9} {values.mean():8.3f} ± {values.double().std() / count**0.5:.3f} nats")

    generator = torch.Generator().manual_seed(args.seed)
    drawn = flow.sample((args.samples, columns), args.num_inference_steps, generator)
    rows = {"flow": drawn.sample, "Gaussian": gaussian.sample((args.samples,)).float(), "real rows": data}
    differences = {name: quantile_differences(values, held_out) for name, values in rows.items()}
    print(f"Quantiles of {args.samples:,} drawn rows, {drawn.nfe} calls, from those held out, in standard deviations")
    print(f"   {'':<24}" + "".join(f"{name:>10}" for name in rows))
    for index, column in enumerate(table.feature_names):
        print(f"   {column:<24}" + "".join(f"{values[index]:10.3f}" for values in differences.values()))
    print(f"   {'mean':<24}" + "".join(f"{values.mean():10.3f}" for values in differences.values()))

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    skewness = (data.pow(3).mean(0)).abs().argsort(descending=True)[:SHOWN]
    for axes, index in zip(figure.subplots(2, SHOWN // 2).flat, skewness.tolist(), strict=True):
        axes.hist(held_out[:, index], bins=30, range=(-3, 5), density=True, alpha=0.4, label="held out")
        for name in ("flow", "Gaussian"):
            axes.hist(rows[name][:, index], bins=30, range=(-3, 5), density=True, histtype="step", label=name)
        axes.set(title=table.feature_names[index], yticks=[])
    figure.axes[0].legend(frameon=False)
    figure.savefig(args.output, dpi=110)
    print(f"The most skewed columns: {args.output}")


if __name__ == "__main__":
    main()
