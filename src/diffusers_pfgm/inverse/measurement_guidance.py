r"""A network guided by a measurement y = A x₀ + σ_y ε: its x̂ becomes E[x₀ | x, y], and the flow that of the posterior.

**The noise that x has seen.** The data x₀ weigh w(x₀) ∝ (‖x − x₀‖² + D σ²)^(−(N+D)/2), and each pulls on log w by
∂ log w / ∂x = (x₀ − x) / s² with s² = (‖x − x₀‖² + D σ²) / (N + D): what a Gaussian of variance s² would do. As a
mixture of Gaussians the kernel says the same, 1 / s² is the mean precision given x and x₀. In many dimensions it hardly
differs between the x₀ that matter, so that

    s² = (‖x − x̂‖² + D σ²) / (N + D),        s² ∂x̂/∂x = C = Cov[x₀ | x],

the first σ² and the second exact at D = ∞.

**Guidance.** The measurement multiplies the weights by its likelihood, whose logarithm has near x̂ the slope

    v = Aᵀ (A C Aᵀ + σ_y² I)⁻¹ (y − A x̂) ≈ Aᵀ (ρ² A Aᵀ + σ_y² I)⁻¹ (y − A x̂),        ρ² = s² s_data² / (s² + s_data²),

with for C that of Gaussian data of standard deviation s_data (ΠGDM: Song et al., Pseudoinverse-guided diffusion models
for inverse problems, ICLR 2023). Weights times exp⟨v, x₀⟩ are those seen from x + s² v, so

    x̂_y = x̂(x + s² v) = x̂ + s² (∂x̂/∂x) v + ...,

a second call of the network. Its Jacobian alone, the first order, as in ΠGDM, costs as much by a pass back and is
further from the exact posterior: x̂ stays among the data wherever it is taken, its tangent does not, and a trained
network's tangent, where s is large, is mostly error times s². C itself in v, by conjugate gradients (TMPD, arXiv
2310.06721), was no better than ρ² I: charges are no Gaussian.

A network knows only points that noise reaches. So a move is at most the noise's own length, ‖s² v‖ ≤ `MAX_MOVE` s √N,
and what it changes at most a distance of data, ‖x̂_y − x̂‖ ≤ `MAX_CHANGE` s_data √N.

**Replacement**, for comparison: x̂ + A⁺ (y − A x̂), the measured part of x̂ is overwritten, whatever its noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..physics.denoiser import Denoiser
from ..physics.kernel import check_aug_dim
from ..physics.parameterization import Parameterization
from ..physics.tensors import append_dims
from .linearization import linearized
from .operators import RIDGE, LinearOperator, Measurement, beside

GUIDANCE_METHODS = ("guidance", "replacement")
MAX_MOVE, MAX_CHANGE = 1.0, 2.0


class GuidedByMeasurement:
    """A network whose x̂ knows a measurement, called like the network itself, by a pipeline or a `PoissonFlow`.

    Args:
        model: the network, or a `ChargeField`.
        parameterization: of its output, `scheduler.parameterization`.
        operator: A, or any measurement that autograd follows, which "guidance" takes as linear near x̂.
        measurement: (B, *'), or one for all (1, *').
        noise_std: σ_y ≥ 0, in the measurement's units; for a complex one of its real and imaginary part each.
        aug_dim: D; None for ∞.
        data_std: s_data, in data units.
        method: "guidance", two calls of the network for each of its own, or "replacement", one.
        **model_kwargs: given to the model, such as `class_labels` (B,).

    Raises:
        ValueError: if `method`, `noise_std` or `data_std` is not of this kind, or "replacement" is asked of a
            measurement that is not linear.

    Example:
        >>> from diffusers_pfgm import ChargeField, Parameterization
        >>> field, form = ChargeField(torch.tensor([[-1.0, 0.0], [1.0, 0.0]])), Parameterization()
        >>> first = LinearOperator(lambda x: x[:, :1], lambda y: torch.nn.functional.pad(y, (0, 1)))
        >>> midway, guided = torch.zeros(1, 2), GuidedByMeasurement(field, form, first, torch.tensor([[1.0]]))
        >>> [f"{Denoiser(model, form)(midway, 0.5)[0, 0].abs():.2f}" for model in (field, guided)]
        ['0.00', '0.76']
    """

    is_guided = True

    def __init__(
        self,
        model: Callable[..., Any],
        parameterization: Parameterization,
        operator: Measurement,
        measurement: torch.Tensor,
        noise_std: float = 0.05,
        aug_dim: float | None = 1.0,
        data_std: float = 0.5,
        method: str = "guidance",
        **model_kwargs: Any,
    ) -> None:
        if method not in GUIDANCE_METHODS:
            raise ValueError(f"`method` must be one of {GUIDANCE_METHODS}, but is {method!r}.")
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"`noise_std` must be a finite number >= 0, but is {noise_std}.")
        if not 0 < data_std < math.inf:
            raise ValueError(f"`data_std` must be a finite number > 0, but is {data_std}. Use 0.5 for images.")
        if method == "replacement" and not isinstance(operator, LinearOperator):
            raise ValueError(
                "`operator` is not a LinearOperator, so nothing of x can be replaced by its measurement. "
                "Use `method='guidance'`, or give it an adjoint."
            )
        self.denoiser = Denoiser(model, parameterization, **model_kwargs)
        self.dtype, self.device = self.denoiser.dtype, measurement.device
        self.parameterization, self.aug_dim = parameterization, check_aug_dim(aug_dim)
        self.operator, self.measurement, self.method = operator, measurement, method
        self.noise_variance, self.data_std = max(noise_std**2, RIDGE), data_std

    @torch.inference_mode(False)  # within which a measurement could have no gradient
    @torch.no_grad()
    def __call__(
        self, sample: torch.Tensor, timestep: float | torch.Tensor, return_dict: bool = False
    ) -> tuple[torch.Tensor]:
        """The output for c_in x = `sample` (B, C, *) at `timestep`, a number or ()."""
        parameterization = self.parameterization
        sigma = parameterization.sigma(timestep)
        x = sample.to(torch.promote_types(sample.dtype, torch.float32)) / parameterization.c_in(sigma)
        denoised = self.denoiser(x, sigma)
        residual = beside(self.measurement, x) - self.operator(denoised)
        operator = linearized(self.operator, denoised)
        if self.method == "replacement":
            guided = denoised + operator.pseudo_inverse(residual)
        else:
            guided = self._guided(x, sigma, denoised, residual, operator)
        return (parameterization.target(guided, x, sigma),)

    def _guided(
        self,
        x: torch.Tensor,
        sigma: float | torch.Tensor,
        denoised: torch.Tensor,
        residual: torch.Tensor,
        operator: LinearOperator,
    ) -> torch.Tensor:
        """x̂_y (B, C, *) from x̂ = `denoised` and y − A x̂ = `residual`."""
        size, squares = x[0].numel(), (x - denoised).flatten(1).square().sum(1)
        seen = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).square().expand_as(squares)
        if math.isfinite(self.aug_dim):
            seen = (squares + self.aug_dim * seen) / (size + self.aug_dim)
        spread = self.data_std**2 * seen / (seen + self.data_std**2)
        slope = operator.adjoint(operator.solve(residual, spread, self.noise_variance))
        move = _shortened(slope * append_dims(seen, x.ndim), MAX_MOVE * (size * seen).sqrt())
        change = self.denoiser(x + move, sigma) - denoised
        limit = torch.full_like(seen, MAX_CHANGE * self.data_std * math.sqrt(size))
        return denoised + _shortened(change, limit)


def _shortened(steps: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Steps (B, *) of a norm up to `limits` (B,); one that is not finite becomes 0."""
    norms = torch.linalg.vector_norm(steps.flatten(1), dim=1).clamp(min=torch.finfo(steps.dtype).tiny)
    return (steps * append_dims((limits / norms).clamp(max=1), steps.ndim)).nan_to_num(0.0, 0.0, 0.0)
