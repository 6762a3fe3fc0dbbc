"""The course of a training run in one picture. Needs matplotlib, of the extra `training`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BAND = "loss/sigma_"
WINDOW = 0.05  # of the run, over which a thick line takes its median
MOST_MEDIANS = 200  # in a line: 20 in each window
LARGEST = 1e300  # of a number that can be drawn


def plot_training(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss, loss by band of σ, gradient norm and learning rate, and the distance to held-out images if there is one.

    Args:
        records: of a run, as `read_records` returns them; those of the events "train" and "validation" are drawn.
            What is no finite number in them is left out.
    """
    train = [record for record in records if record["event"] == "train"]
    validation = [record for record in records if record["event"] == "validation"]
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    (loss, bands), (norm, last) = figure.subplots(2, 2, sharex=True)

    _draw(loss, train, "loss", "tab:blue", "loss")
    loss.set(title="Loss", yscale="log")
    edges = {name: found for record in train for name in record if (found := _edges(name)) is not None}
    names = sorted(edges, key=lambda name: edges[name][1])
    for name, color in zip(names, colormaps["viridis"](np.linspace(0, 0.9, len(names))), strict=True):
        low, high = edges[name]
        label = f"σ < {high:g}" if low == 0 else f"σ > {low:g}" if high == np.inf else f"{low:g} to {high:g}"
        _draw(bands, train, name, color, label, raw=False)
    bands.set(title="Loss by band of σ", yscale="log")
    if names:
        bands.legend(fontsize="small", title="height")
    _draw(norm, train, "grad_norm", "tab:orange", "gradient norm")
    norm.set(title="Norm of the gradient", yscale="log", xlabel="step")
    if validation:
        _draw(last, validation, "distance", "tab:green", "samples")
        floor = validation[-1].get("distance_of_real_images")
        if _is_number(floor):
            last.axhline(floor, color="gray", linestyle=":", label="real images")
        last.set(title="Sliced Wasserstein distance to held-out images", xlabel="step", ylim=(0, None))
        last.legend(fontsize="small")
    else:
        _draw(last, train, "lr", "tab:green", "learning rate", raw=False)
        last.set(title="Learning rate", xlabel="step", ylim=(0, None))
    for axes in (loss, bands, norm, last):
        axes.grid(alpha=0.3)
    return figure


def _edges(name: str) -> tuple[float, float] | None:
    """Lowest and highest σ of the band whose loss a record has by this name; None if it is none."""
    if not name.startswith(BAND):
        return None
    try:
        low, high = map(float, name.removeprefix(BAND).split("_"))
    except ValueError:
        return None
    return low, high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < LARGEST


def _running_median(values: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Medians over `width` values to either side, at no more than 200 places, and the indices of these places."""
    places = np.linspace(0, len(values) - 1, min(len(values), MOST_MEDIANS)).round().astype(int)
    return places, np.array([np.median(values[max(0, i - width) : i + width + 1]) for i in places])


def _draw(
    axes: Axes, records: Sequence[Mapping[str, Any]], name: str, color: Any, label: str, raw: bool = True
) -> None:
    """One number against the steps: as it is, and where there are many its running median."""
    found = [
        (record["step"], record[name])
        for record in records
        if _is_number(record["step"]) and _is_number(record.get(name))
    ]
    if not found:
        return
    steps, values = (np.array(each, dtype=float) for each in zip(*found, strict=True))
    width = max(1, int(WINDOW * len(values)))
    if width == 1:
        axes.plot(steps, values, color=color, linewidth=1.6, label=label)
        return
    if raw:
        axes.plot(steps, values, color=color, linewidth=0.5, alpha=0.4)
    places, medians = _running_median(values, width)
    axes.plot(steps[places], medians, color=color, linewidth=1.6, label=label)
