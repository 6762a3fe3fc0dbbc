"""A spacing of steps that is fitted to a model, by following a few dozen of its field lines once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..physics.denoiser import Denoise, Denoiser, dtype_and_device, slice_kwargs
from ..physics.preconditioning import ZERO_SNR_SIGMA
from ..physics.tensors import Generators
from ..solvers.multistep import integrate
from ..solvers.spacing import fit_knots, geometric_sigmas, sigmas_at
from ..solvers.step_search import end_errors, search_sigmas
from ..utils.checks import check_whole_number
from .conversion import check_field_config
from .scheduling_poisson_flow import PoissonFlowScheduler
from .sigma_schedule import SigmaSchedule
from .sigma_steps import num_parameters

FINE_STEPS = 200  # the number of steps that follow the field lines, to which the spacing is fitted
REFERENCE_STEPS = 100  # the number of steps of the reference run, with whose ends those of few steps are compared
MARGIN = 2.0  # searched steps are kept if they reduce the error by more than this number of standard errors


@torch.no_grad()
def fit_sigmas(
    model: Callable[..., Any],
    scheduler: PoissonFlowScheduler,
    shape: Sequence[int],
    generator: Generators = None,
    num_samples: int | None = None,
    batch_size: int | None = None,
    num_inference_steps: int | None = None,
    **model_kwargs: Any,
) -> PoissonFlowScheduler:
    """Return a copy of a scheduler whose steps are shorter where the field lines of this model are curved.

    The spacing is stored in `config.sigma_knots`, works with any number of steps, and is saved with a pipeline. With
    `num_inference_steps` the best noise levels for that number of steps of the scheduler's solver are searched too
    (`solvers.step_search`). If they are better than the spacing on field lines that the search did not use, by more
    than two standard errors, they are stored in `config.sigma_steps`, and a run of that many steps uses them.

    Args:
        model: a network, called like `UNet2DModel`, or a `ChargeField`. It is called 200 times for each batch. The
            search calls it about 75 n times more for half of the batches.
        scheduler: defines what the model predicts, and its first and last σ; may be a diffusers scheduler.
        shape: shape of one sample, (C, *).
        generator: one generator, or a list of `num_samples` of them.
        num_samples: number of field lines to follow; 32 by default, or 512 with `num_inference_steps`, one half of them
            for the search and the other for the comparison.
        batch_size: number of samples in one network call, by default all. The result does not depend on it.
        num_inference_steps: a small number n of steps, such as 5, whose noise levels are searched; None for the
            spacing alone.
        **model_kwargs: passed to the model, such as `class_labels` (num_samples,).

    Raises:
        ValueError: if `num_samples`, `batch_size` or `num_inference_steps` is not a whole number ≥ 1, `num_samples` is
            below 4 with `num_inference_steps`, `shape` is a number, the scheduler starts at infinite σ, a `ChargeField`
            has other options than the scheduler, the model's output has the wrong shape or is not finite, or x̂ is
            constant.

    Examples:
        >>> from diffusers_pfgm import ChargeField
        >>> field = ChargeField(torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
        >>> scheduler = fit_sigmas(field, PoissonFlowScheduler(), (1, 4, 4), torch.Generator().manual_seed(0))
        >>> scheduler.set_timesteps(5)
        >>> len(scheduler.config.sigma_knots), len(scheduler.timesteps)
        (33, 5)
    """
    if num_inference_steps is not None:
        check_whole_number("num_inference_steps", num_inference_steps, 1)
    if num_samples is None:
        num_samples = 32 if num_inference_steps is None else 512
    check_whole_number("num_samples", num_samples, 1 if num_inference_steps is None else 4)
    if batch_size is not None:
        check_whole_number("batch_size", batch_size, 1)
    if isinstance(shape, int):
        raise ValueError(f"`shape` must be the shape of one sample, such as (1, 8, 8), but is {shape}.")
    scheduler = PoissonFlowScheduler.from_config(PoissonFlowScheduler.from_scheduler(scheduler).config)
    check_field_config(getattr(model, "config", None), scheduler)
    high, low = scheduler.sigma_range
    if high >= ZERO_SNR_SIGMA:
        raise ValueError(
            "`scheduler` starts at infinite sigma (`rescale_betas_zero_snr`), so no spacing can be fitted. Keep its "
            "`timestep_spacing`; 'trailing' is the best for it."
        )
    dtype, device = dtype_and_device(model)
    dtype = torch.promote_types(dtype or torch.float32, torch.float32)
    x = scheduler.kernel.sample((num_samples, *shape), high, generator, device, dtype, scheduler.config.max_norm)
    scheduler.set_timesteps(1)
    x = scheduler.move_to_prior(x)
    batched = _Batches(model, scheduler, num_samples, batch_size or num_samples, model_kwargs)
    knots = fit_knots(batched.denoise_rows(slice(0, num_samples)), x, geometric_sigmas(high, low, FINE_STEPS))
    scheduler = PoissonFlowScheduler.from_config(scheduler.config, sigma_knots=knots, sigma_steps=None)
    if num_inference_steps is not None:
        steps = _search_steps(batched, scheduler, x, num_inference_steps)
        if steps is not None:
            fitted_for = {"aug_dim": scheduler.config.aug_dim, "num_parameters": num_parameters(model)}
            scheduler = PoissonFlowScheduler.from_config(scheduler.config, sigma_steps={"sigmas": steps, **fitted_for})
    return scheduler


@dataclass(eq=False)
class _Batches:
    """x̂ of some of the samples, computed in batches."""

    model: Callable[..., Any]
    scheduler: PoissonFlowScheduler
    num_samples: int
    batch_size: int
    model_kwargs: dict[str, Any]

    def denoise_rows(self, rows: slice) -> Denoise:
        """Return x̂ (K, *) of the samples of these rows, as a function of their x (K, *) and of σ."""
        parts = []
        for first in range(rows.start, rows.stop, self.batch_size):
            part = slice(first, min(first + self.batch_size, rows.stop))
            kwargs = slice_kwargs(self.model_kwargs, part, self.num_samples)
            parts.append((part, Denoiser(self.model, self.scheduler.parameterization, **kwargs)))

        def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
            # (B, 1, ...) on the hemisphere
            sigmas = self.scheduler.sigma_of_samples(sigma)
            pieces = x.split(self.batch_size)
            return torch.cat(
                [
                    denoiser(piece, sigmas[part] if isinstance(sigmas, torch.Tensor) else sigma)
                    for piece, (part, denoiser) in zip(pieces, parts, strict=True)
                ]
            )

        return denoise


def _search_steps(
    batches: _Batches, fitted: PoissonFlowScheduler, x: torch.Tensor, num_inference_steps: int
) -> list[float] | None:
    """Search the noise levels of n steps on one half of x; None if they are not clearly better on the other half."""
    config = fitted.config
    schedule = SigmaSchedule(config, fitted.parameterization)
    spaced = schedule.choose(num_inference_steps)
    solver = config.solver, config.solver_order, config.use_corrector
    half = len(x) // 2
    parts = [slice(0, half), slice(half, len(x))]
    denoise = [batches.denoise_rows(rows) for rows in parts]
    fine = schedule.choose(REFERENCE_STEPS)
    references = [
        integrate(denoise_part, x[rows], [*fine.sigmas, fine.final])
        for denoise_part, rows in zip(denoise, parts, strict=True)
    ]

    def run(sigmas: Sequence[float], part: int = 0) -> torch.Tensor:
        return integrate(denoise[part], x[parts[part]], [*sigmas, spaced.final], *solver)

    spacing = functools.partial(sigmas_at, config.sigma_knots)
    steps = search_sigmas(run, references[0], spacing, num_inference_steps)
    errors, default = (end_errors(run(sigmas, 1), references[1]) for sigmas in (steps, spaced.sigmas))
    gain = default - errors
    standard_error = gain.std() / len(gain) ** 0.5
    return steps if gain.mean() > MARGIN * standard_error else None
