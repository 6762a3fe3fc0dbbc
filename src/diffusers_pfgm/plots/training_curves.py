"""The curves of a training run in one figure. Needs matplotlib, which the extra `training` installs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BAND_PREFIX = "loss/sigma_"
WINDOW = 0.05  # half width of the running median, as a share of the run
MAX_MEDIANS = 200  # the largest number of points of a running median
MAX_VALUE = 1e300  # the limit of numbers that matplotlib can draw


def plot_training(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the loss, the loss by band of σ, the gradient norm, and the distance to held-out images.

    Args:
        records: the records of a run, as `read_records` returns them. Those of the events "train" and "validation" are
            drawn, except for values that are not finite numbers. Without validation the learning rate is drawn in place
            of the distance.
    """
    train = [record for record in records if record["event"] == "train"]
    validation = [record for record in records if record["event"] == "validation"]
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    (loss, bands), (norm, last) = figure.subplots(2, 2, sharex=True)

    _draw(loss, train, "loss", "tab:blue", "loss")
    loss.set(title="Loss", yscale="log")
    bands_by_name = {name: band for record in train for name in record if (band := _band(name)) is not None}
    names = sorted(bands_by_name, key=lambda name: bands_by_name[name][1])
    for name, color in zip(names, colormaps["viridis"](np.linspace(0, 0.9, len(names))), strict=True):
        low, high = bands_by_name[name]
        label = f"σ < {high:g}" if low == 0 else f"σ > {low:g}" if high == np.inf else f"{low:g} to {high:g}"
        _draw(bands, train, name, color, label, raw=False)
    bands.set(title="Loss by band of σ", yscale="log")
    if names:
        bands.legend(fontsize="small", title="noise level")
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


def _band(name: str) -> tuple[float, float] | None:
    """Return the lowest and highest σ of a band from the name of its loss in a record; None for other names."""
    if not name.startswith(BAND_PREFIX):
        return None
    try:
        low, high = map(float, name.removeprefix(BAND_PREFIX).split("_"))
    except ValueError:
        return None
    return low, high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < MAX_VALUE


def _running_median(values: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `MAX_MEDIANS` indices, and the medians over `width` values on either side of each."""
    indices = np.linspace(0, len(values) - 1, min(len(values), MAX_MEDIANS)).round().astype(int)
    return indices, np.array([np.median(values[max(0, i - width) : i + width + 1]) for i in indices])


def _draw(
    axes: Axes, records: Sequence[Mapping[str, Any]], name: str, color: Any, label: str, raw: bool = True
) -> None:
    """Draw a number of the records against their steps: its running median, and itself if `raw` or there are few."""
    points = [
        (record["step"], record[name])
        for record in records
        if _is_number(record["step"]) and _is_number(record.get(name))
    ]
    if not points:
        return
    steps, values = (np.array(each, dtype=float) for each in zip(*points, strict=True))
    width = max(1, int(WINDOW * len(values)))
    if width == 1:
        axes.plot(steps, values, color=color, linewidth=1.6, label=label)
        return
    if raw:
        axes.plot(steps, values, color=color, linewidth=0.5, alpha=0.4)
    indices, medians = _running_median(values, width)
    axes.plot(steps[indices], medians, color=color, linewidth=1.6, label=label)
