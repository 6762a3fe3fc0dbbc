r"""A run of the backward flow as it goes: states, x̂, norms and radii at each height.

A state x at σ stands at the height r = σ√D (at D = 1 the paper's z) and thus on the hemisphere of radius √(‖x‖² + r²).
Far above the data field lines are rays, on which ‖x‖, r and the radius fall in one ratio; near it ‖x‖ stays while r
goes to 0. If the field is right, the states at σ follow the law of y + σ · noise, and so do their norms (PFGM, arXiv
2209.11178, section 4, watches norm against z). At D = 1 this law has no mean, hence quantiles.
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
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..schedulers.stepping import scheduler_steps

BAND = (0.16, 0.5, 0.84)  # of a normal law: one standard deviation around the mean
LAW_SAMPLES = 2000
DRAWN = 40  # single lines


@dataclass(frozen=True)
class Trajectory:
    """What `record_trajectory` has seen.

    Attributes:
        scheduler: of the run, with its heights.
        sigmas: (S + 1,), float64: σ of each of the S calls, and the last, usually 0.
        states: (S + 1, B, C, *), x at each of them in data units.
        denoised: (S, B, C, *), x̂ of each call.
    """

    scheduler: PoissonFlowScheduler
    sigmas: torch.Tensor
    states: torch.Tensor
    denoised: torch.Tensor

    @property
    def heights(self) -> torch.Tensor:
        """(S + 1,), r = σ√D; at D = ∞ σ itself."""
        aug_dim = self.scheduler.kernel.aug_dim
        return self.sigmas if math.isinf(aug_dim) else self.sigmas * math.sqrt(aug_dim)

    @property
    def norms(self) -> torch.Tensor:
        """(S + 1, B), ‖x‖ in data units."""
        return torch.linalg.vector_norm(self.states.flatten(2).double(), dim=2)

    @property
    def radii(self) -> torch.Tensor:
        """(S + 1, B), √(‖x‖² + r²), of the hemisphere on which a state lies.

        Raises:
            ValueError: at D = ∞, where r is endless.
        """
        if math.isinf(self.scheduler.kernel.aug_dim):
            raise ValueError(
                "`radii` needs a finite `aug_dim`, but the scheduler's is None: at D = infinity there is no "
                "hemisphere. Use `norms`."
            )
        return torch.hypot(self.norms, self.heights.unsqueeze(1))


@torch.no_grad()
def record_trajectory(
    model: Callable[..., Any],
    scheduler: PoissonFlowScheduler,
    latents: torch.Tensor,
    num_inference_steps: int = 20,
    **model_kwargs: Any,
) -> Trajectory:
    """Follow the backward flow by the scheduler's steps, and keep all of it.

    Args:
        model: a network, called like `UNet2DModel`, or a `ChargeField`.
        scheduler: says what the model predicts; it is left as it is. One of diffusers as well.
        latents: (B, C, *), as `scheduler.sample_prior` draws them.
        num_inference_steps: of the run.
        **model_kwargs: given to the model, such as `class_labels` (B,).

    Raises:
        ValueError: if the model's output does not fit.

    Example:
        >>> from diffusers_pfgm import ChargeField
        >>> scheduler, field = PoissonFlowScheduler(), ChargeField(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        >>> latents = scheduler.sample_prior((3, 2), torch.Generator().manual_seed(0))
        >>> trajectory = record_trajectory(field, scheduler, latents, 10)
        >>> trajectory.states.shape, trajectory.denoised.shape, trajectory.norms[-1].max().round().item()
        (torch.Size([11, 3, 2]), torch.Size([10, 3, 2]), 1.0)
    """
    flow: PoissonFlowScheduler = PoissonFlowScheduler.from_config(PoissonFlowScheduler.from_scheduler(scheduler).config)
    flow.set_timesteps(num_inference_steps, device=latents.device)
    sigmas = flow.sigmas.double()
    states, denoised = [latents], list[torch.Tensor]()
    dtype = dtype_and_device(model)[0]
    for step in scheduler_steps(flow, functools.partial(model, **model_kwargs), latents, dtype):
        states.append(step.sample)
        denoised.append(step.denoised)  # type: ignore[arg-type]  # this scheduler always returns it
    scaled = [flow.data_scale(sigma) * state for sigma, state in zip(sigmas.tolist(), states, strict=True)]
    return Trajectory(flow, sigmas, torch.stack(scaled).cpu(), torch.stack(denoised).cpu())


def norm_quantiles(trajectory: Trajectory, data: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Quantiles of ‖y + σ · noise‖ at each height: what the norms of a right flow obey.

    The noise is that of the run's own prior samples, each beside many y, so that the draws' scatter cancels in a
    comparison with `trajectory.norms`, and a limit of the prior's radius is kept.

    Args:
        trajectory: from `record_trajectory`, of latents from the prior.
        data: (K, *), shaped as its states.
        seed: of the draws of y.

    Returns:
        (3, S + 1), at 16, 50 and 84 %, in data units.

    Raises:
        ValueError: if the data have another shape than the states.
    """
    if len(data) == 0 or data.shape[1:] != trajectory.states.shape[2:]:
        raise ValueError(
            f"`data` must have the shape (K, *) of the states {tuple(trajectory.states.shape[2:])} each, but has "
            f"{tuple(data.shape)}. Pass the data that the model was made from."
        )
    noise = trajectory.states[0].flatten(1).double() / trajectory.sigmas[0]
    noise = noise.repeat(math.ceil(LAW_SAMPLES / len(noise)), 1)
    rows = torch.randint(len(data), (len(noise),), generator=torch.Generator().manual_seed(seed))
    places = data.flatten(1).cpu()[rows].double()
    norms = [torch.linalg.vector_norm(places + sigma * noise, dim=1) for sigma in trajectory.sigmas]
    return torch.stack(norms).quantile(torch.tensor(BAND, dtype=torch.float64), dim=1)


def plot_trajectories(trajectory: Trajectory, data: torch.Tensor | None = None) -> Figure:
    """‖x‖ against z, the hemisphere's radius against z (not at D = ∞, where it is endless), and all three step by step.

    Args:
        trajectory: from `record_trajectory`.
        data: (K, *), to compare norms with the law that they should obey; not drawn without.

    Raises:
        ValueError: if the data have another shape than the states.
    """
    finite = not math.isinf(trajectory.scheduler.kernel.aug_dim)
    name = "z" if trajectory.scheduler.kernel.aug_dim == 1 else "r = σ√D" if finite else "σ"
    figure = Figure(figsize=(13 if finite else 9, 4), layout="constrained")
    panels = list(figure.subplots(1, 3 if finite else 2))
    _draw_spread(panels[0], trajectory, trajectory.norms)
    if data is not None:
        heights, law = trajectory.heights, norm_quantiles(trajectory, data)
        positive = heights > 0
        for quantile, label in zip(law, (None, "law of the data at this height", None), strict=True):
            panels[0].plot(heights[positive], quantile[positive], "--", color="black", linewidth=1.1, label=label)
    panels[0].set(title=f"Norm against {name}", xlabel=name, ylabel="‖x‖")
    panels[0].legend(frameon=False, fontsize="small")
    if finite:
        _draw_spread(panels[1], trajectory, trajectory.radii)
        panels[1].set(title="Radius of the hemisphere", xlabel=name, ylabel=f"√(‖x‖² + {name[0]}²)")

    steps, last = torch.arange(len(trajectory.sigmas)), panels[-1]
    if finite:
        last.plot(
            steps, trajectory.radii.median(1).values, color="tab:orange", linewidth=5, alpha=0.5, label="radius, median"
        )
    last.plot(steps, trajectory.norms.median(1).values, color="tab:blue", label="‖x‖, median")
    last.plot(steps, trajectory.heights.where(trajectory.heights > 0, math.nan), ".-", color="black", label=name)
    last.set(title="Along the run", xlabel="step", ylabel="data units", yscale="log")
    last.legend(frameon=False, fontsize="small")
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure


def _draw_spread(axes: Axes, trajectory: Trajectory, values: torch.Tensor) -> None:
    """Values (S + 1, B) against the heights above 0, falling to the right: some lines, their median and a band."""
    positive = trajectory.heights > 0
    heights, values = trajectory.heights[positive], values[positive]
    low, middle, high = values.quantile(torch.tensor(BAND, dtype=torch.float64), dim=1)
    axes.plot(heights, values[:, :DRAWN], color="gray", linewidth=0.4, alpha=0.5)
    axes.fill_between(heights, low, high, color="tab:blue", alpha=0.25, label="16 to 84 %")
    axes.plot(heights, middle, color="tab:blue", linewidth=2, label="median")
    axes.set(xscale="log", yscale="log")
    axes.invert_xaxis()
