"""Claim c: robustness of Euler's method to the step size, D = 1 against D = ∞."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ...pipelines import PFGMPipeline
from ...schedulers import PoissonFlowScheduler
from .claim import Cell, Check, Claim, interval
from .digits_field import AGREEMENT, REFERENCE_STEPS, agreement_with_reference
from .mnist_model import draw_digits, label_agreement, load_model
from .weak_networks import EDM, PFGM, distance_of, trained_network

STEPS = (100, 50, 20, 10)
EXACT = {
    "exact field, D = 1, the paper's prior": (1.0, "plane"),
    "exact field, D = 1, shell": (1.0, "shell"),
    "exact field, D = ∞": (None, None),
}
PICTURE = "claims-euler.png"


def step_sizes(
    pictures: Path,
    seeds: Sequence[int] = (0, 1, 2),
    starts: int = 256,
    images: int = 16,
    width: int = 16,
    training_steps: int = 300,
    samples: int = 200,
    epochs: int = 14,
    steps: Sequence[int] = STEPS,
) -> Claim:
    """Measure claim c.

    Args:
        pictures: the folder in which the picture is saved.
        seeds: seeds of starting points, images and trainings.
        starts: the number of starting points in the exact field, for each seed.
        images: the number of MNIST images, for each seed.
        width: the number of channels in the first block of the trained networks, which are those of claim b.
        training_steps: the number of training steps of these networks.
        samples: the number of samples of each of these networks.
        epochs: the number of epochs of the classifier.
        steps: the numbers of Euler steps, decreasing.
    """
    runs = [("euler", count) for count in steps]
    agreements = {
        name: agreement_with_reference(aug_dim, prior, {"euler": {"solver": "euler"}}, runs, seeds, starts)
        for name, (aug_dim, prior) in EXACT.items()
    }
    distances: dict[str, list[list[float]]] = {}
    for kind in (PFGM, EDM):
        pipes = [with_euler(trained_network(kind, width, seed, training_steps)) for seed in seeds]
        distances[kind] = [[distance_of(pipe, samples, count, epochs) for pipe in pipes] for count in steps]
    growths = {
        kind: [last / first for first, last in zip(values[0], values[-1], strict=True)]
        for kind, values in distances.items()
    }
    differences, label_agreements = _mnist(seeds, images, steps)
    paper, _, diffusion = agreements.values()
    rows: list[list[Cell]] = [[name, AGREEMENT, *values] for name, values in agreements.items()]
    rows += [[f"network of claim b, {kind}", "Fréchet distance", *values] for kind, values in distances.items()]
    rows.append(["MNIST model, D = 1", "RMS difference from the first column", *differences])
    rows.append(["MNIST model, D = 1", "agreement with the label", *label_agreements])
    _draw(agreements, distances, steps).savefig(pictures / PICTURE, dpi=80)
    return Claim(
        title="Step size of Euler's method",
        statement="PFGM is more robust to the step size of Euler's method than the ODE of VE diffusion",
        source="PFGM, abstract and section 4, on step sizes in the forward Euler method",
        method="Euler's method in σ, with equal ratios of σ for every D. Exact field of 1,437 digits: the agreement "
        f"with a reference run of {REFERENCE_STEPS} multistep steps, as in claim a. Trained networks: Fréchet "
        "distances as in claim b. The MNIST model of the package exists for D = 1 only, so that there is no model to "
        "compare it with. Its rows are the root-mean-square difference from its images with the most steps, and the "
        "share of images that the package's classifier assigns to their label.",
        checks=[
            Check(
                f"exact field, {steps[-1]} steps: agreement at D = 1 with the paper's prior − agreement at D = ∞",
                "above",
                0.0,
                [ours - theirs for ours, theirs in zip(paper[-1], diffusion[-1], strict=True)],
            ),
            Check(
                f"trained networks: growth of the distance from {steps[0]} to {steps[-1]} steps, as a ratio, at D = ∞ "
                "/ at D = 1",
                "above",
                1.0,
                [theirs / ours for theirs, ours in zip(growths[EDM], growths[PFGM], strict=True)],
            ),
        ],
        header=["model", "figure", *(f"{count} steps" for count in steps)],
        rows=rows,
        sizes={
            "seeds": list(seeds),
            "starting points per seed": starts,
            "MNIST images per seed": images,
            "width": width,
            "training steps": training_steps,
            "samples": samples,
        },
        pictures={PICTURE: "Agreement with the reference run, and Fréchet distance, against the number of Euler steps"},
    )


def with_euler(pipe: PFGMPipeline) -> PFGMPipeline:
    """Return a pipeline of the same network with Euler's method."""
    scheduler = PoissonFlowScheduler.from_config(pipe.scheduler.config, solver="euler")
    euler = PFGMPipeline(pipe.unet, scheduler)
    euler.set_progress_bar_config(disable=True)
    return euler


def _mnist(seeds: Sequence[int], images: int, steps: Sequence[int]) -> tuple[list[list[float]], list[list[float]]]:
    """Return RMS differences from the images of the most steps and label agreements, for each step number and seed."""
    pipe = load_model("mnist", solver="euler", sigma_knots=None)
    drawn = [[draw_digits(pipe, images, seed, count) for seed in seeds] for count in steps]
    differences = [
        [(image - fine).square().mean().sqrt().item() for image, fine in zip(row, drawn[0], strict=True)]
        for row in drawn
    ]
    return differences, [[label_agreement(image) for image in row] for row in drawn]


def _draw(
    agreements: dict[str, list[list[float]]], distances: dict[str, list[list[float]]], steps: Sequence[int]
) -> Figure:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = (("exact field of digits", AGREEMENT), ("networks of claim b", "Fréchet distance"))
    for axes, curves, (title, label) in zip(panels, (agreements, distances), titles, strict=True):
        for name, values in curves.items():
            means, widths = zip(*map(interval, values), strict=True)
            axes.errorbar(steps, means, widths, marker="o", markersize=4, capsize=3, label=name.split("field, ")[-1])
        axes.set(title=title, xlabel="Euler steps", ylabel=label, xscale="log")
        axes.set_xticks(steps, [str(count) for count in steps])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize="small")
    return figure
