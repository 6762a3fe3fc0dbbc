"""Claim a: the Poisson ODE needs few network calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ...physics import ChargeField
from ...schedulers import PoissonFlowScheduler
from ...schedulers.fit_sigmas import fit_sigmas
from ..digits import split_digits
from .claim import Cell, Check, Claim, interval
from .digits_field import IMAGE_SHAPE, REFERENCE_STEPS, shares_of_same_digit
from .mnist_model import draw_digits, label_agreement, load_model, mnist_distance

AUG_DIMS = (1.0, 64.0, None)
CALLS = (5, 10, 20)
LEAST_SHARE = 0.95  # of the starts must end at their digit with 20 calls
LARGEST_RATIO = 1.1  # of the Fréchet distance at 10 calls to that at 20 calls
PICTURE = "claims-calls.png"
FITTED = "multistep, fitted"


def few_calls(
    pictures: Path, seeds: Sequence[int] = (0, 1, 2), starts: int = 256, images: int = 140, calls: Sequence[int] = CALLS
) -> Claim:
    """Measure claim a.

    Args:
        pictures: the folder of the picture.
        seeds: seeds of the starts.
        starts: the number of starts in the exact field, for each seed.
        images: the number of MNIST images, for each seed.
        calls: numbers of network calls, increasing. The checks are those of the last two.
    """
    rows: list[list[Cell]] = []
    curves: dict[str, list[list[float]]] = {}
    for aug_dim in AUG_DIMS:
        shares = _shares(aug_dim, seeds, starts, calls)
        for name, values in shares.items():
            label = f"exact field, D = {'∞' if aug_dim is None else f'{aug_dim:g}'}, {name}"
            curves[label] = values
            rows.append([label, "share at its own digit", "", "", *values])
    distances, agreements = _mnist(seeds, images, calls)
    for label, figures in (("Fréchet distance", distances), ("agreement with the label", agreements)):
        one_or_two = [figures["mnist_consistency", count] for count in (1, 2)]
        rows.append(["MNIST model, D = 1", label, *one_or_two, *(figures["mnist", count] for count in calls)])
    ratio = [few / many for few, many in zip(*(distances["mnist", count] for count in calls[-2:]), strict=True)]
    _draw(curves, distances, calls).savefig(pictures / PICTURE, dpi=80)
    return Claim(
        title="Few network calls",
        statement="The ODE of PFGM needs ten to twenty times fewer network calls than the samplers of SDEs, which "
        "take one to two thousand, at the same quality",
        source="PFGM, abstract and section 4: about 110 calls of RK45 on CIFAR-10",
        method="No SDE is sampled here. It is checked that a few calls suffice. Exact field of 1,437 digits: the "
        f"share of starts that end at the digit of their own run of {REFERENCE_STEPS} steps. Heun's method takes as "
        "many steps as the number of calls allows. MNIST model of the package, with labels and without guidance: the "
        "Fréchet distance to the 10,000 test images in the features of the package's classifier, and its agreement "
        "with the label. One and two calls are those of the consistency model, which was tuned with guidance 2. "
        "Distances of few images are too large, by the same amount in all columns.",
        checks=[
            Check(
                f"share at its own digit, exact field, D = 1, {FITTED}, {calls[-1]} calls",
                "above",
                LEAST_SHARE,
                curves[f"exact field, D = 1, {FITTED}"][-1],
            ),
            Check(
                f"MNIST model, Fréchet distance at {calls[-2]} calls / at {calls[-1]} calls",
                "below",
                LARGEST_RATIO,
                ratio,
            ),
        ],
        header=["model", "figure", "1 call", "2 calls", *(f"{count} calls" for count in calls)],
        rows=rows,
        sizes={"seeds": list(seeds), "starts of a seed": starts, "MNIST images of a seed": images},
        pictures={PICTURE: "Share of starts at their own digit, and Fréchet distance, against network calls"},
    )


def _shares(
    aug_dim: float | None, seeds: Sequence[int], starts: int, calls: Sequence[int]
) -> dict[str, list[list[float]]]:
    """For each solver of the scheduler the shares of all seeds at each number of calls."""
    field = ChargeField(split_digits()[0].double(), aug_dim)
    fitted = fit_sigmas(field, PoissonFlowScheduler(aug_dim), IMAGE_SHAPE, torch.Generator().manual_seed(100))
    runs: dict[str, dict[str, Any]] = {
        FITTED: {"sigma_knots": fitted.config.sigma_knots},
        "multistep": {},
        "heun": {"solver": "heun"},
        "euler": {"solver": "euler"},
    }
    steps = [(name, (count + 1) // 2 if name == "heun" else count) for name in runs for count in calls]
    shares = shares_of_same_digit(aug_dim, None, runs, steps, seeds, starts)
    return {name: shares[i * len(calls) : (i + 1) * len(calls)] for i, name in enumerate(runs)}


def _mnist(
    seeds: Sequence[int], images: int, calls: Sequence[int]
) -> tuple[dict[tuple[str, int], list[float]], dict[tuple[str, int], list[float]]]:
    """Fréchet distances and agreements for each model and number of calls, one for each seed."""
    distances: dict[tuple[str, int], list[float]] = {}
    agreements: dict[tuple[str, int], list[float]] = {}
    for name, counts in (("mnist_consistency", (1, 2)), ("mnist", calls)):
        pipe = load_model(name)
        for count in counts:
            drawn = [draw_digits(pipe, images, seed, count) for seed in seeds]
            distances[name, count] = [mnist_distance(each) for each in drawn]
            agreements[name, count] = [label_agreement(each) for each in drawn]
    return distances, agreements


def _draw(
    curves: dict[str, list[list[float]]], distances: dict[tuple[str, int], list[float]], calls: Sequence[int]
) -> Figure:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in curves.items():
        if "D = 1," in name or FITTED in name:
            means, widths = zip(*map(interval, values), strict=True)
            left.errorbar(calls, means, widths, marker="o", markersize=4, capsize=3, label=name.split(", ", 1)[1])
    for name, label in (("mnist", "MNIST model"), ("mnist_consistency", "consistency model")):
        counts = [count for model, count in distances if model == name]
        means, widths = zip(*(interval(distances[name, count]) for count in counts), strict=True)
        right.errorbar(counts, means, widths, marker="o", markersize=4, capsize=3, label=label)
    left.set(title="exact field of digits", xlabel="network calls", ylabel="share at its own digit")
    right.set(title="MNIST", xlabel="network calls", ylabel="Fréchet distance")
    left.legend(frameon=False, fontsize="small")
    right.legend(frameon=False, fontsize="small")
    return figure
