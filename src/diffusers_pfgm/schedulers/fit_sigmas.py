"""The spacing of steps that fits a field, found by following a few dozen of its lines once."""

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

FINE_STEPS = 200


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
    """A scheduler like `scheduler` whose steps lie where this model's field bends.

    The spacing is kept in `config.sigma_knots`, serves any number of steps, and is saved with a pipeline.

    Args:
        model: a network, called like `UNet2DModel`, or a `ChargeField`; it is called 200 times for each batch.
        scheduler: says what the model predicts, and from which height to which; one of diffusers as well.
        shape: of one sample, (C, *).
        generator: one generator, or a list of `num_samples` of them.
        num_samples: field lines to follow.
        batch_size: samples in one call of the model; all by default. The result does not depend on it.
        **model_kwargs: given to the model, such as `class_labels` (num_samples,).

    Raises:
        ValueError: if the model's output does not fit, or it is blind (the same x̂ everywhere).

    Example:
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
        raise ValueError(f"`shape` must be that of one sample, such as (1, 8, 8), but is {shape}.")
    scheduler = PoissonFlowScheduler.from_scheduler(scheduler)
    high, low = scheduler.sigma_range
    if high >= ZERO_SNR_SIGMA:
        raise ValueError(
            "`scheduler` starts at infinite sigma (`rescale_betas_zero_snr`), so no spacing can be fitted. Keep its "
            "`timestep_spacing`, 'trailing' at best."
        )
    dtype, device = dtype_and_device(model)
    dtype = torch.promote_types(dtype or torch.float32, torch.float32)
    x = scheduler.kernel.sample((num_samples, *shape), high, generator, device, dtype, scheduler.config.max_norm)
    size = num_samples if batch_size is None else min(batch_size, num_samples)
    parts = [slice(first, first + size) for first in range(0, num_samples, size)]
    given = [model_kwargs] if size == num_samples else [slice_kwargs(model_kwargs, rows, num_samples) for rows in parts]
    denoisers = [Denoiser(model, scheduler.parameterization, **options) for options in given]

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.cat([part(x[rows], sigma) for part, rows in zip(denoisers, parts, strict=True)])

    knots = fit_knots(denoise, x, geometric_sigmas(high, low, FINE_STEPS))
    return PoissonFlowScheduler.from_config(scheduler.config, sigma_knots=knots)
