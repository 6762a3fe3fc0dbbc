"""A spacing of steps that is fitted to a model, by following a few dozen of its field lines once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..physics.denoiser import Denoiser, dtype_and_device, slice_kwargs
from ..physics.preconditioning import ZERO_SNR_SIGMA
from ..physics.tensors import Generators
from ..solvers.spacing import fit_knots, geometric_sigmas
from ..utils.checks import check_whole_number
from .scheduling_poisson_flow import PoissonFlowScheduler

FINE_STEPS = 200  # steps along the field lines


@torch.no_grad()
def fit_sigmas(
    model: Callable[..., Any],
    scheduler: PoissonFlowScheduler,
    shape: Sequence[int],
    generator: Generators = None,
    num_samples: int = 32,
    batch_size: int | None = None,
    **model_kwargs: Any,
) -> PoissonFlowScheduler:
    """Return a copy of a scheduler whose steps are shorter where the field lines of this model are curved.

    The spacing is stored in `config.sigma_knots`, works with any number of steps, and is saved with a pipeline.

    Args:
        model: a network, called like `UNet2DModel`, or a `ChargeField`. It is called 200 times for each batch.
        scheduler: defines what the model predicts, and its first and last σ; may be a diffusers scheduler.
        shape: shape of one sample, (C, *).
        generator: one generator, or a list of `num_samples` of them.
        num_samples: number of field lines to follow.
        batch_size: number of samples in one network call, by default all. The result does not depend on it.
        **model_kwargs: passed to the model, such as `class_labels` (num_samples,).

    Raises:
        ValueError: if `num_samples` or `batch_size` is not a whole number ≥ 1, `shape` is a number, the scheduler
            starts at infinite σ, the model's output has the wrong shape or is not finite, or x̂ is constant.

    Examples:
        >>> from diffusers_pfgm import ChargeField
        >>> field = ChargeField(torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
        >>> scheduler = fit_sigmas(field, PoissonFlowScheduler(), (1, 4, 4), torch.Generator().manual_seed(0))
        >>> scheduler.set_timesteps(5)
        >>> len(scheduler.config.sigma_knots), len(scheduler.timesteps)
        (33, 5)
    """
    check_whole_number("num_samples", num_samples, 1)
    if batch_size is not None:
        check_whole_number("batch_size", batch_size, 1)
    if isinstance(shape, int):
        raise ValueError(f"`shape` must be the shape of one sample, such as (1, 8, 8), but is {shape}.")
    scheduler = PoissonFlowScheduler.from_config(PoissonFlowScheduler.from_scheduler(scheduler).config)
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
    size = num_samples if batch_size is None else min(batch_size, num_samples)
    parts = [slice(first, first + size) for first in range(0, num_samples, size)]
    if size == num_samples:
        kwargs_of_parts = [model_kwargs]
    else:
        kwargs_of_parts = [slice_kwargs(model_kwargs, rows, num_samples) for rows in parts]
    denoisers = [Denoiser(model, scheduler.parameterization, **kwargs) for kwargs in kwargs_of_parts]

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        sigmas = torch.as_tensor(scheduler.sigma_of_samples(sigma))
        return torch.cat(
            [
                denoiser(x[rows], sigmas[rows] if sigmas.ndim else sigma)
                for denoiser, rows in zip(denoisers, parts, strict=True)
            ]
        )

    knots = fit_knots(denoise, x, geometric_sigmas(high, low, FINE_STEPS))
    return PoissonFlowScheduler.from_config(scheduler.config, sigma_knots=knots)
