r"""Trajectories of the backward flow: states, x̂, norms and radii at each noise level of a run.

A state x at noise level σ has the augmented radius r = σ√D (at D = 1 the paper's z), and is thus on the hemisphere of
radius √(‖x‖² + r²). At large r field lines are rays, on which ‖x‖, r and the hemisphere's radius decrease in the same
ratio. Near the data ‖x‖ becomes constant while r goes to 0. If the field is exact, the states at σ have the
distribution of y + σ · noise, y a data point, and their norms have that of ‖y + σ · noise‖ (PFGM, arXiv 2209.11178,
section 4, plots the norm against z). At D = 1 this norm has no mean, so quantiles are compared.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..physics.denoiser import dtype_and_device
from ..physics.tensors import at_least_float32
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..schedulers.stepping import scheduler_steps

BAND_QUANTILES = (0.16, 0.5, 0.84)  # those of a normal distribution are its mean ± one standard deviation
NUM_NORM_SAMPLES = 2000  # the least number of norms ‖y + σ · noise‖ from which quantiles are computed
MAX_LINES = 40  # the largest number of single trajectories in a figure


@dataclass(frozen=True)
class Trajectory:
    """A recorded run of S network calls, from `record_trajectory`.

    Attributes:
        scheduler: the scheduler of the run, with its timesteps set.
        sigmas: (S + 1,), float64, the noise level σ of each call, and the final one, usually 0.
        states: (S + 1, B, C, *), x at each of these noise levels, in data units.
        denoised: (S, B, C, *), x̂ of each call, in data units.
    """

    scheduler: PoissonFlowScheduler
    sigmas: torch.Tensor
    states: torch.Tensor
    denoised: torch.Tensor

    @property
    def augmented_radii(self) -> torch.Tensor:
        """The augmented radii r = σ√D, (S + 1,); at D = ∞, where they are infinite, σ itself."""
        aug_dim = self.scheduler.kernel.aug_dim
        return self.sigmas if math.isinf(aug_dim) else self.sigmas * math.sqrt(aug_dim)

    @property
    def norms(self) -> torch.Tensor:
        """The norms ‖x‖ of the states, (S + 1, B), in data units."""
        return torch.linalg.vector_norm(self.states.flatten(2).double(), dim=2)

    @property
    def hemisphere_radii(self) -> torch.Tensor:
        """The radii √(‖x‖² + r²) of the hemispheres through the states, (S + 1, B), in data units.

        Raises:
            ValueError: if D = ∞, where r is infinite.
        """
        if math.isinf(self.scheduler.kernel.aug_dim):
            raise ValueError(
                "`hemisphere_radii` needs a finite `aug_dim`, but the scheduler's is None: at D = infinity there is no "
                "hemisphere. Use `norms`."
            )
        return torch.hypot(self.norms, self.augmented_radii.unsqueeze(1))


@torch.no_grad()
def record_trajectory(
    model: Callable[..., Any],
    scheduler: PoissonFlowScheduler,
    latents: torch.Tensor,
    num_inference_steps: int = 20,
    **model_kwargs: Any,
) -> Trajectory:
    """Run the backward flow with the scheduler's steps, and record every state and x̂.

    Args:
        model: a network that is called like `UNet2DModel`, or a `ChargeField`.
        scheduler: a `PoissonFlowScheduler`, or a scheduler of diffusers, that fits the model. It is copied.
        latents: (B, C, *), latents as `scheduler.sample_prior` draws them.
        num_inference_steps: the number of steps.
        **model_kwargs: keyword arguments of the model, such as `class_labels` (B,).

    Raises:
        ValueError: if the model's output does not have the shape that the scheduler's prediction type needs.

    Examples:
        >>> from diffusers_pfgm import ChargeField
        >>> scheduler, field = PoissonFlowScheduler(), ChargeField(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        >>> latents = scheduler.sample_prior((3, 2), torch.Generator().manual_seed(0))
        >>> trajectory = record_trajectory(field, scheduler, latents, 10)
        >>> trajectory.states.shape, trajectory.denoised.shape, trajectory.norms[-1].max().round().item()
        (torch.Size([11, 3, 2]), torch.Size([10, 3, 2]), 1.0)
    """
    converted: PoissonFlowScheduler = PoissonFlowScheduler.from_config(
        PoissonFlowScheduler.from_scheduler(scheduler).config
    )
    converted.set_timesteps(num_inference_steps, device=latents.device)
    sigmas = converted.sigmas.double()
    latents = at_least_float32(latents)  # as in pipelines
    states = [latents]
    denoised: list[torch.Tensor] = []
    dtype = dtype_and_device(model)[0]
    for step in scheduler_steps(converted, functools.partial(model, **model_kwargs), latents, dtype):
        states.append(step.sample)
        denoised.append(step.denoised)  # type: ignore[arg-type]  # `PoissonFlowScheduler` always returns it
    scaled = [converted.data_scale(sigma) * state for sigma, state in zip(sigmas.tolist(), states, strict=True)]
    return Trajectory(converted, sigmas, torch.stack(scaled).cpu(), torch.stack(denoised).cpu())


def norm_quantiles(trajectory: Trajectory, data: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Return quantiles of ‖y + σ · noise‖ at each noise level, which are those of the norms if the field is exact.

    The noise is taken from the run's own latents, each combined with several data points y. Its sampling error then
    cancels in a comparison with `trajectory.norms`, and a limit of the prior's norm (`max_norm`) applies to both.

    Args:
        trajectory: a trajectory from latents of the prior.
        data: (K, *), data points of the shape of the states.
        seed: the seed for drawing y.

    Returns:
        (3, S + 1), the quantiles at 16, 50 and 84 %, in data units.

    Raises:
        ValueError: if the data points have another shape than the states.
    """
    if len(data) == 0 or data.shape[1:] != trajectory.states.shape[2:]:
        raise ValueError(
            f"`data` must have the shape (K, *) of the states {tuple(trajectory.states.shape[2:])} each, but has "
            f"{tuple(data.shape)}. Pass the data that the model was made from."
        )
    noise = trajectory.states[0].flatten(1).double() / trajectory.sigmas[0]
    noise = noise.repeat(math.ceil(NUM_NORM_SAMPLES / len(noise)), 1)
    rows = torch.randint(len(data), (len(noise),), generator=torch.Generator().manual_seed(seed))
    y = data.flatten(1).cpu()[rows].double()
    norms = [torch.linalg.vector_norm(y + sigma * noise, dim=1) for sigma in trajectory.sigmas]
    return torch.stack(norms).quantile(torch.tensor(BAND_QUANTILES, dtype=torch.float64), dim=1)


def plot_trajectories(trajectory: Trajectory, data: torch.Tensor | None = None) -> Figure:
    """Draw ‖x‖ and the hemisphere's radius against the augmented radius r, and all three against the step.

    At D = 1 r is z. At D = ∞ there is no hemisphere, and σ takes the place of r.

    Args:
        trajectory: a trajectory from `record_trajectory`.
        data: (K, *), data points, for the expected quantiles of the norms; None to leave these out.

    Raises:
        ValueError: if the data points have another shape than the states.
    """
    is_finite = not math.isinf(trajectory.scheduler.kernel.aug_dim)
    name = "z" if trajectory.scheduler.kernel.aug_dim == 1 else "r = σ√D" if is_finite else "σ"
    figure = Figure(figsize=(13 if is_finite else 9, 4), layout="constrained")
    panels = list(figure.subplots(1, 3 if is_finite else 2))
    radii = trajectory.augmented_radii
    _draw_spread(panels[0], trajectory, trajectory.norms)
    if data is not None:
        expected = norm_quantiles(trajectory, data)
        positive = radii > 0
        for quantile, label in zip(expected, (None, "expected for these data", None), strict=True):
            panels[0].plot(radii[positive], quantile[positive], "--", color="black", linewidth=1.1, label=label)
    panels[0].set(title=f"Norm against {name}", xlabel=name, ylabel="‖x‖")
    panels[0].legend(frameon=False, fontsize="small")
    if is_finite:
        _draw_spread(panels[1], trajectory, trajectory.hemisphere_radii)
        panels[1].set(title="Radius of the hemisphere", xlabel=name, ylabel=f"√(‖x‖² + {name[0]}²)")

    steps = torch.arange(len(trajectory.sigmas))
    last = panels[-1]
    if is_finite:
        median_radii = trajectory.hemisphere_radii.median(1).values
        label = "radius of the hemisphere, median"
        last.plot(steps, median_radii, color="tab:orange", linewidth=5, alpha=0.5, label=label)
    last.plot(steps, trajectory.norms.median(1).values, color="tab:blue", label="‖x‖, median")
    last.plot(steps, radii.where(radii > 0, math.nan), ".-", color="black", label=name)
    last.set(title="Along the run", xlabel="step", ylabel="data units", yscale="log")
    last.legend(frameon=False, fontsize="small")
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure


def _draw_spread(axes: Axes, trajectory: Trajectory, values: torch.Tensor) -> None:
    """Draw values (S + 1, B) against r > 0, decreasing to the right: single lines, their median and a band."""
    positive = trajectory.augmented_radii > 0
    radii = trajectory.augmented_radii[positive]
    values = values[positive]
    low, median, high = values.quantile(torch.tensor(BAND_QUANTILES, dtype=torch.float64), dim=1)
    axes.plot(radii, values[:, :MAX_LINES], color="gray", linewidth=0.4, alpha=0.5)
    axes.fill_between(radii, low, high, color="tab:blue", alpha=0.25, label="16 to 84 %")
    axes.plot(radii, median, color="tab:blue", linewidth=2, label="median")
    axes.set(xscale="log", yscale="log")
    axes.invert_xaxis()
