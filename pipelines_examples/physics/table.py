"""A Poisson flow on the rows of a table: train a small network, draw rows and compute likelihoods.

    python pipelines_examples/physics/table.py

The columns are standardized. The script prints the training loss, the mean log-likelihood of held-out rows, and for
each column the difference between the quantiles of drawn and held-out rows. For comparison it prints the same for a
Gaussian with the mean and covariance of the training rows plus noise of the standard deviation σ_min. A figure with
histograms of the most skewed columns is saved.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import diffusers_pfgm.examples  # noqa: F401 - names the extra if one of its packages is missing

# isort: split
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer, load_wine

from diffusers_pfgm import PoissonFlow
from diffusers_pfgm.examples.point_network import PointNetwork, make_scheduler, train_network
from diffusers_pfgm.training.run.option_types import integer, number, positive
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.utils.output_file import figure_file

TABLES = {"breast_cancer": load_breast_cancer, "wine": load_wine}
QUANTILES = torch.linspace(0.05, 0.95, 19)
NUM_SHOWN = 6  # columns in the figure, the most skewed


def fitted_gaussian(rows: torch.Tensor, noise_std: float) -> torch.distributions.MultivariateNormal:
    """Return the Gaussian with the mean and covariance of rows (K, N), plus independent noise of each column."""
    noise = noise_std**2 * torch.eye(rows.shape[1], dtype=rows.dtype)
    return torch.distributions.MultivariateNormal(rows.mean(0), torch.cov(rows.T) + noise)


def quantile_differences(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference between the quantiles of each column of two sets of rows, (N,)."""
    quantiles = QUANTILES.to(rows.dtype)
    return (rows.quantile(quantiles, dim=0) - others.quantile(quantiles, dim=0)).abs().mean(0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--table", choices=tuple(TABLES), default="breast_cancer", help="data set of scikit-learn")
    add("--aug_dim", type=float, default=64.0, help="augmented dimension D; 1 for PFGM, inf for a diffusion model")
    add("--sigma_min", type=float, default=0.1, help="noise level of the density, in standard deviations of the data")
    add("--sigma_max", type=float, default=50.0, help="largest noise level, in standard deviations of the data")
    add("--max_train_steps", type=positive, default=1500, help="number of training steps")
    add("--dropout", type=float, default=0.2, help="dropout of the network, against overfitting to the few rows")
    share = number(0, 1, above_low=True, below_high=True)
    add("--held_out", type=share, default=0.3, help="share of the rows that are held out")
    add("--samples", type=positive, default=1000, help="number of rows to draw")
    add("--num_inference_steps", type=positive, default=20, help="number of sampling steps")
    add("--tolerance", type=number(0, above_low=True), default=1e-3, help="tolerance of the log-densities in nats")
    add("--seed", type=integer(0), default=0, help="seed of the split, weights and samples")
    add("--output", type=figure_file, default=Path("table.png"), help="file of the figure")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)

    table = TABLES[args.table]()
    raw = torch.from_numpy(table.data)
    order = torch.randperm(len(raw))
    count = round(args.held_out * len(raw))
    mean = raw[order[count:]].mean(0)
    scale = raw[order[count:]].std(0)
    held_out, data = ((raw[order] - mean) / scale).float().split([count, len(raw) - count])

    scheduler = make_scheduler(args.aug_dim, args.sigma_min, args.sigma_max)
    columns = data.shape[1]
    network = PointNetwork(columns, dropout=args.dropout)
    started = time.perf_counter()
    loss = train_network(network, data, scheduler, args.max_train_steps, seed=args.seed)
    seconds = time.perf_counter() - started
    print(f"{args.table}: {len(data)} rows of {columns} columns to train on, {count} held out, D = {args.aug_dim:g}")
    print(f"{args.max_train_steps:,} training steps in {seconds:.0f} s, loss {loss:.4f}")

    flow = PoissonFlow(network, scheduler)
    gaussian = fitted_gaussian(data.double(), args.sigma_min)
    likelihood = flow.log_prob(held_out, tolerance=args.tolerance)
    print(f"Mean log-likelihood of the held-out rows at σ = {args.sigma_min:g}, {likelihood.nfe} network calls:")
    for name, values in (("flow", likelihood.log_prob), ("Gaussian", gaussian.log_prob(held_out.double()))):
        print(f"   {name:<9} {values.mean():8.3f} ± {values.double().std() / count**0.5:.3f} nats")

    generator = torch.Generator().manual_seed(args.seed)
    samples = flow.sample((args.samples, columns), args.num_inference_steps, generator)
    rows = {"flow": samples.sample, "Gaussian": gaussian.sample((args.samples,)).float(), "real rows": data}
    differences = {name: quantile_differences(values, held_out) for name, values in rows.items()}
    print(
        f"Quantile differences of {args.samples:,} drawn rows ({samples.nfe} calls) and the held-out rows, in standard "
        "deviations:"
    )
    print(f"   {'':<24}" + "".join(f"{name:>10}" for name in rows))
    for index, column in enumerate(table.feature_names):
        print(f"   {column:<24}" + "".join(f"{values[index]:10.3f}" for values in differences.values()))
    print(f"   {'mean':<24}" + "".join(f"{values.mean():10.3f}" for values in differences.values()))

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    most_skewed = data.pow(3).mean(0).abs().argsort(descending=True)[:NUM_SHOWN]
    for axes, index in zip(figure.subplots(2, NUM_SHOWN // 2).flat, most_skewed.tolist(), strict=True):
        axes.hist(held_out[:, index], bins=30, range=(-3, 5), density=True, alpha=0.4, label="held out")
        for name in ("flow", "Gaussian"):
            axes.hist(rows[name][:, index], bins=30, range=(-3, 5), density=True, histtype="step", label=name)
        axes.set(title=table.feature_names[index], yticks=[])
    figure.axes[0].legend(frameon=False)
    figure.savefig(args.output, dpi=110)
    print(f"Histograms of the most skewed columns: {args.output}")


if __name__ == "__main__":
    run_script(main)
