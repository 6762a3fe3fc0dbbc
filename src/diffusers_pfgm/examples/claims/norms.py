"""Claim d: at each noise level the norms of samples vary far more in PFGM than in the VE and VP ODEs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy import stats

from ...physics import ChargeField, PoissonKernel
from ...plots.trajectories import record_trajectory
from ...schedulers import PoissonFlowScheduler
from ..digits import split_digits
from .claim import Cell, Check, Claim
from .digits_field import IMAGE_SHAPE

BAND = (0.05, 0.95)  # the quantiles of a norm whose ratio is called its spread
LEVELS = (0.1, 1.0, 10.0)  # noise levels of the table; the last is checked
LEAST_RATIO = 2.0  # bound of the spread of PFGM over the spread of VE
FLOWS = {"PFGM, D = 1": 1.0, "VE, D = ∞": None}
VP = "VP, D = ∞"
PERTURBED = "training perturbation"
BACKWARD = "backward trajectories"
SIGMA_MIN, SIGMA_MAX = 0.01, 40.0
PICTURE = "claims-norms.png"


def norms_against_z(pictures: Path, seeds: Sequence[int] = (0, 1, 2), samples: int = 500, steps: int = 40) -> Claim:
    """Measure claim d.

    Args:
        pictures: the folder in which the picture is saved.
        seeds: seeds of the noise and of the starting points.
        samples: the number of samples, for each seed.
        steps: the number of steps of the backward trajectories.
    """
    sigmas = torch.logspace(math.log10(SIGMA_MIN), math.log10(SIGMA_MAX), 40, dtype=torch.float64)
    perturbed = {
        name: [perturbed_norms(aug_dim, sigmas, samples, seed) for seed in seeds] for name, aug_dim in FLOWS.items()
    }
    backward = {
        name: [trajectory_norms(aug_dim, samples, steps, seed) for seed in seeds] for name, aug_dim in FLOWS.items()
    }
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    rows: list[list[Cell]] = []
    last: dict[tuple[str, str], list[float]] = {}
    correlations = {name: [correlation(sigmas, norms) for norms in values] for name, values in perturbed.items()}
    for name, aug_dim in FLOWS.items():
        at_levels = [spreads(perturbed_norms(aug_dim, levels, samples, seed)) for seed in seeds]
        along = [
            spreads(norms[(run_sigmas.unsqueeze(1) / levels).log().abs().argmin(0)])
            for run_sigmas, norms in backward[name]
        ]
        kernel: list[Cell] = [kernel_spread(aug_dim)] * len(LEVELS)
        for kind, values in ((PERTURBED, at_levels), (BACKWARD, along)):
            columns = [list(column) for column in zip(*values, strict=True)]
            last[name, kind] = columns[-1]
            rows.append([name, kind, *columns, correlations[name] if kind == PERTURBED else ""])
        rows.append([name, "kernel alone, closed form", *kernel, ""])
    _draw(sigmas, perturbed, backward).savefig(pictures / PICTURE, dpi=80)
    poisson, diffusion = FLOWS
    return Claim(
        title="Norms at each z",
        statement="In the VE and VP ODEs the norm of a sample is strongly correlated with the noise level, so that an "
        "error of the norm leads to samples that did not occur in training. In PFGM the norms at each z spread widely",
        source="PFGM, section 4, the figure of norms against σ(t) and z",
        method=f"Spread: the {BAND[1]:.0%} quantile of ‖x‖ at a noise level σ (z at D = 1), divided by its "
        f"{BAND[0]:.0%} quantile. Training perturbation: digits with the kernel's noise. Backward trajectories: runs "
        "of the exact field of 1,437 digits from the paper's prior, at the step nearest to σ. Closed form: ‖x − "
        "y‖²/(N σ²) has the F distribution with N and 1 degrees of freedom at D = 1, and is χ²_N/N at D = ∞. VP has "
        "the states of VE divided by √(1 + σ²), so that it has the spreads and the trajectories of VE; the picture "
        "shows its norms. Correlation: the correlation of ln σ and ln ‖x‖, for σ in equal ratios from "
        f"{SIGMA_MIN:g} to {SIGMA_MAX:g}.",
        checks=[
            Check(
                f"{PERTURBED}: correlation of VE − correlation of PFGM",
                "above",
                0.0,
                [theirs - ours for ours, theirs in zip(correlations[poisson], correlations[diffusion], strict=True)],
            ),
            *(
                Check(
                    f"{kind}, σ = {LEVELS[-1]:g}: spread of PFGM / spread of VE",
                    "above",
                    LEAST_RATIO,
                    [ours / theirs for ours, theirs in zip(last[poisson, kind], last[diffusion, kind], strict=True)],
                )
                for kind in (PERTURBED, BACKWARD)
            ),
        ],
        header=["flow", "norms of", *(f"spread at σ = {level:g}" for level in LEVELS), "correlation"],
        rows=rows,
        sizes={"seeds": list(seeds), "samples per seed": samples, "steps": steps},
        pictures={PICTURE: "Norms of samples against z or σ: median and 5 to 95 %"},
    )


def perturbed_norms(aug_dim: float | None, sigmas: torch.Tensor, samples: int, seed: int) -> torch.Tensor:
    """Return norms of digits with the kernel's noise at each σ, (S, samples)."""
    digits = split_digits()[0].double()
    generator = torch.Generator().manual_seed(seed)
    norms = []
    for sigma in sigmas.tolist():
        rows = torch.randint(len(digits), (samples,), generator=generator)
        noise = PoissonKernel(aug_dim).sample((samples, *IMAGE_SHAPE), sigma, generator, dtype=torch.float64)
        norms.append((digits[rows] + noise).flatten(1).norm(dim=1))
    return torch.stack(norms)


def trajectory_norms(aug_dim: float | None, samples: int, steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the σ's (S,) and norms (S, samples) of backward runs in the exact field, from the paper's prior."""
    scheduler = PoissonFlowScheduler(aug_dim, SIGMA_MIN, SIGMA_MAX, final_sigmas_type="sigma_min", prior="plane")
    field = ChargeField(split_digits()[0].double(), aug_dim)
    generator = torch.Generator().manual_seed(seed)
    latents = scheduler.sample_prior((samples, *IMAGE_SHAPE), generator, dtype=torch.float64)
    trajectory = record_trajectory(field, scheduler, latents, steps)
    return trajectory.sigmas, trajectory.norms


def spreads(norms: torch.Tensor) -> list[float]:
    """Return the ratio of the 95 % and the 5 % quantile of norms (S, B) in each row, (S,)."""
    low, high = norms.quantile(torch.tensor(BAND, dtype=norms.dtype), dim=1)
    return (high / low).tolist()


def kernel_spread(aug_dim: float | None) -> float:
    """Return the spread of the kernel's noise, whose squared norm over N σ² has the F distribution, or is χ²_N/N.

    Examples:
        >>> kernel_spread(1.0) > 20 * kernel_spread(None)
        True
    """
    dim = math.prod(IMAGE_SHAPE)
    law = stats.chi2(dim) if aug_dim is None else stats.f(dim, aug_dim)
    low, high = law.ppf(BAND)
    return float(math.sqrt(high / low))


def correlation(sigmas: torch.Tensor, norms: torch.Tensor) -> float:
    """Return the correlation of ln σ (S,) and the logarithms of norms (S, B)."""
    columns = sigmas.log().unsqueeze(1).expand_as(norms)
    return float(torch.stack([columns.flatten(), norms.log().flatten()]).corrcoef()[0, 1])


def _draw(
    sigmas: torch.Tensor,
    perturbed: dict[str, list[torch.Tensor]],
    backward: dict[str, list[tuple[torch.Tensor, torch.Tensor]]],
) -> Figure:
    """Draw bands of the norms of all seeds, also for VP, whose norms are those of VE divided by √(1 + σ²)."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    run_sigmas = next(iter(backward.values()))[0][0]
    joined = [
        (sigmas, {name: torch.cat(norms, 1) for name, norms in perturbed.items()}),
        (run_sigmas, {name: torch.cat([norms for _, norms in runs], 1) for name, runs in backward.items()}),
    ]
    for axes, (levels, curves), title in zip(panels, joined, (PERTURBED, BACKWARD), strict=True):
        curves[VP] = list(curves.values())[-1] / (1 + levels.square()).sqrt().unsqueeze(1)
        for name, norms in curves.items():
            low, middle, high = norms.quantile(torch.tensor((BAND[0], 0.5, BAND[1]), dtype=norms.dtype), dim=1)
            (line,) = axes.plot(levels, middle, label=name)
            axes.fill_between(levels, low, high, color=line.get_color(), alpha=0.25)
        axes.set(title=title, xlabel="z = σ", ylabel="‖x‖", xscale="log", yscale="log")
        axes.legend(frameon=False, fontsize="small")
    return figure
