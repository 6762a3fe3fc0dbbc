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
from .digits_field import AGREEMENT, IMAGE_SHAPE, REFERENCE_STEPS, agreement_with_reference
from .mnist_model import draw_digits, label_agreement, load_model, mnist_distance

AUG_DIMS = (1.0, 64.0, None)
CALLS = (5, 10, 20)
LEAST_AGREEMENT = 0.95  # bound of the agreement with the reference run at the most calls
LARGEST_RATIO = 1.1  # bound of the ratio of the Fréchet distances at the second most and at the most calls
PICTURE = "claims-calls.png"
FITTED = "multistep, fitted"


def few_calls(
    pictures: Path, seeds: Sequence[int] = (0, 1, 2), starts: int = 256, images: int = 140, calls: Sequence[int] = CALLS
) -> Claim:
    """Measure claim a.

    Args:
        pictures: the folder in which the picture is saved.
        seeds: seeds of the starting points.
        starts: the number of starting points in the exact field, for each seed.
        images: the number of MNIST images, for each seed.
        calls: numbers of network calls, increasing. The last two are checked.
    """
    rows: list[list[Cell]] = []
    curves: dict[str, list[list[float]]] = {}
    for aug_dim in AUG_DIMS:
        for name, values in _agreements(aug_dim, seeds, starts, calls).items():
            label = f"exact field, D = {'∞' if aug_dim is None else f'{aug_dim:g}'}, {name}"
            curves[label] = values
            rows.append([label, AGREEMENT, "", "", *values])
    distances, label_agreements = _mnist(seeds, images, calls)
    for label, figures in (("Fréchet distance", distances), ("agreement with the label", label_agreements)):
        one_or_two = [figures["mnist_consistency", count] for count in (1, 2)]
        rows.append(["MNIST model, D = 1", label, *one_or_two, *(figures["mnist", count] for count in calls)])
    ratio = [few / many for few, many in zip(*(distances["mnist", count] for count in calls[-2:]), strict=True)]
    _draw(curves, distances, calls).savefig(pictures / PICTURE, dpi=80)
    return Claim(
        title="Few network calls",
        statement="The ODE of PFGM needs ten to twenty times fewer network calls than the samplers of SDEs, which "
        "take one to two thousand, at the same quality",
        source="PFGM, abstract and section 4: about 110 calls of RK45 on CIFAR-10",
        method="No SDE is sampled here. It is checked that a few calls suffice. Exact field of 1,437 digits: from each "
        f"starting point, a draw of the prior, a reference run of {REFERENCE_STEPS} steps ends at one of the digits. "
        "The agreement with the reference run is the share of starting points from which a run with few calls ends at "
        "the same digit. Heun's method takes as many steps as the number of calls allows. MNIST model of the package, "
        "with labels and without guidance: the Fréchet distance to the 10,000 test images in the features of the "
        "package's classifier, and the share of images that this classifier assigns to their label. One and two calls "
        "are those of the consistency model, which was tuned with guidance 2. Fréchet distances of few images are "
        "biased upwards. All columns have the same number of images, so they can be compared with each other, but not "
        "with distances of other numbers of images.",
        checks=[
            Check(
                f"{AGREEMENT}, exact field, D = 1, {FITTED}, {calls[-1]} calls",
                "above",
                LEAST_AGREEMENT,
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
        sizes={"seeds": list(seeds), "starting points per seed": starts, "MNIST images per seed": images},
        pictures={PICTURE: "Agreement with the reference run, and Fréchet distance, against network calls"},
    )


def _agreements(
    aug_dim: float | None, seeds: Sequence[int], starts: int, calls: Sequence[int]
) -> dict[str, list[list[float]]]:
    """Return the agreements with the reference run by solver, for each number of calls and seed."""
    field = ChargeField(split_digits()[0].double(), aug_dim)
    fitted = fit_sigmas(field, PoissonFlowScheduler(aug_dim), IMAGE_SHAPE, torch.Generator().manual_seed(100))
    runs: dict[str, dict[str, Any]] = {
        FITTED: {"sigma_knots": fitted.config.sigma_knots},
        "multistep": {},
        "heun": {"solver": "heun"},
        "euler": {"solver": "euler"},
    }
    steps = [(name, (count + 1) // 2 if name == "heun" else count) for name in runs for count in calls]
    agreements = agreement_with_reference(aug_dim, None, runs, steps, seeds, starts)
    return {name: agreements[i * len(calls) : (i + 1) * len(calls)] for i, name in enumerate(runs)}


def _mnist(
    seeds: Sequence[int], images: int, calls: Sequence[int]
) -> tuple[dict[tuple[str, int], list[float]], dict[tuple[str, int], list[float]]]:
    """Return Fréchet distances and agreements with the label by model and number of calls, one for each seed."""
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
    left.set(title="exact field of digits", xlabel="network calls", ylabel=AGREEMENT)
    right.set(title="MNIST", xlabel="network calls", ylabel="Fréchet distance")
    left.legend(frameon=False, fontsize="small")
    right.legend(frameon=False, fontsize="small")
    return figure
