"""What the two objectives of tuning, `consistency` and `distribution_matching`, have in common.

Both draw a noise level t for each sample from ln(t/σ_d) ~ N(0, 1.8²), and move it to the nearest end of the range from
0.01 σ_d to σ_max if it is outside. σ_d is the standard deviation of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..physics.parameterization import Parameterization
from ..physics.tensors import Generators, append_dims, at_least_float32, cast_clamped, draw

LEAST_SIGMA = 0.01  # the smallest t, in σ_d
P_MEAN, P_STD = 0.0, 1.8  # mean and standard deviation of ln(t/σ_d)

Teacher = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def draw_noise_levels(
    count: int, data_std: float, sigma_max: float, generator: Generators, device: torch.device
) -> torch.Tensor:
    """Draw the noise levels t of a batch.

    Args:
        count: the number of samples B.
        data_std: σ_d, in data units.
        sigma_max: the largest t, in data units.
        generator: one generator, or a list of B of them.
        device: device of the result.

    Returns:
        (B,), in data units.
    """
    normal = draw(torch.randn, (count,), generator, device)
    relative = (P_MEAN + P_STD * normal).exp().clamp(min=LEAST_SIGMA)
    return (relative * data_std).clamp(max=sigma_max)


def call_network(
    model: Callable[..., Any],
    parameterization: Parameterization,
    x: torch.Tensor,
    sigma: torch.Tensor,
    dtype: torch.dtype,
    **model_kwargs: Any,
) -> tuple[torch.Tensor, Any]:
    """Call a network.

    Args:
        model: called as `model(c_in x, c_noise, **model_kwargs).sample`.
        parameterization: the network's parameterization.
        x: (B, C, *), in data units.
        sigma: noise levels σ, (B, 1, ...), in data units.
        dtype: dtype of the network's input.
        **model_kwargs: further keyword arguments of the model.

    Returns:
        The output (B, C', *), in float32 or wider, and the noise level of the preconditioning, a number, () or
        (B, 1, ...).

    Raises:
        ValueError: if the output has the wrong shape.
    """
    model_input, timestep, noise_level = parameterization.model_input(x, sigma)
    output = model(cast_clamped(model_input, dtype), timestep, **model_kwargs).sample
    parameterization.check_output(output, x)
    return at_least_float32(output), noise_level


def guide(
    conditional: torch.Tensor, unconditional: torch.Tensor, scale: float, class_labels: torch.Tensor, null_class: int
) -> torch.Tensor:
    """Apply classifier-free guidance (arXiv 2207.12598) to the samples that have a class.

    Args:
        conditional: a prediction (B, C, *) with `class_labels`.
        unconditional: the same without a class.
        scale: the scale w of the guidance.
        class_labels: (B,).
        null_class: the label of samples without a class.

    Returns:
        (B, C, *): unconditional + w (conditional − unconditional) with a class, else `conditional`.
    """
    guided = unconditional + scale * (conditional - unconditional)
    return torch.where(append_dims(class_labels != null_class, conditional.ndim), guided, conditional)
