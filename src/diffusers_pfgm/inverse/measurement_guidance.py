r"""A network guided by a measurement y = A x₀ + σ_y ε: its x̂ approximates E[x₀ | x, y], so its flow is the posterior's.

**The effective noise variance.** Given x, the data x₀ have the weights w(x₀) ∝ (‖x − x₀‖² + D σ²)^(−(N+D)/2), with
∂ log w / ∂x = (x₀ − x) / s² and s² = (‖x − x₀‖² + D σ²) / (N + D), as for a Gaussian of variance s². If the kernel is
written as a mixture of Gaussians, 1 / s² is the mean precision given x and x₀. In many dimensions s² is almost the same
for all x₀ of considerable weight, so that

    s² = (‖x − x̂‖² + D σ²) / (N + D),        s² ∂x̂/∂x = C = Cov[x₀ | x],

where at D = ∞ s² is σ², and the second equation is exact.

**Guidance.** The measurement multiplies the weights by its likelihood, whose logarithm has the gradient near x̂

    v = Aᵀ (A C Aᵀ + σ_y² I)⁻¹ (y − A x̂) ≈ Aᵀ (ρ² A Aᵀ + σ_y² I)⁻¹ (y − A x̂),        ρ² = s² s_data² / (s² + s_data²),

where ρ² I replaces C; it is the covariance for Gaussian data of standard deviation s_data (ΠGDM: Song et al.,
Pseudoinverse-guided diffusion models for inverse problems, ICLR 2023). The weights times exp⟨v, x₀⟩ are the weights at
x + s² v, so

    x̂_y = x̂(x + s² v) = x̂ + s² (∂x̂/∂x) v + ...,

which is one more network call. The first-order term alone, as in ΠGDM, costs about as much, by a backward pass, and is
further from the exact posterior: x̂ remains near the data, but its first-order expansion does not, and if s is large,
the Jacobian of a trained network is mostly an error, multiplied by s². Using C itself in v, by conjugate gradients
(TMPD, arXiv 2310.06721), was not better than ρ² I, as the distribution of charges is not Gaussian.

A network is only accurate at points where noisy data are. So the move is limited to the length of the noise,
‖s² v‖ ≤ `MAX_MOVE` s √N, and the change to a distance between data, ‖x̂_y − x̂‖ ≤ `MAX_CHANGE` s_data √N.

**Replacement**, for comparison: x̂ + A⁺ (y − A x̂) overwrites the measured part of x̂, and ignores the noise of y.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..physics.denoiser import Denoiser
from ..physics.kernel import check_aug_dim
from ..physics.parameterization import Parameterization
from ..physics.tensors import append_dims, at_least_float32, to_tensor
from .linear_operator import RIDGE, LinearOperator, Operator, measurement_like
from .linearization import linearized

GUIDANCE_METHODS = ("guidance", "replacement")
MAX_MOVE = 1.0
MAX_CHANGE = 2.0


class GuidedByMeasurement:
    """A network whose x̂ is conditioned on a measurement. It is called like the network, by a pipeline or `PoissonFlow`.

    Args:
        model: the network, or a `ChargeField`.
        parameterization: the parameterization of the network, `scheduler.parameterization`.
        operator: A, or any differentiable measurement, which "guidance" linearizes at x̂.
        measurement: y (B, *'), or (1, *') for the same measurement of all samples.
        noise_std: σ_y ≥ 0, in the units of the measurement. For a complex measurement it is the standard deviation of
            the real part, and of the imaginary part. Defaults to 0.05.
        aug_dim: D; None for ∞. Defaults to 1.
        data_std: s_data, in data units. Defaults to 0.5.
        method: "guidance", the default, with two network calls at each step, or "replacement", with one.
        sigma_of_call: σ of a call, a number or (B, 1, ...), as a function of its timestep, such as the scheduler's
            `sigma_of_call`. It is needed where the timestep is not that of σ, as with the Student-t preconditioning.
        **model_kwargs: passed to the model, such as `class_labels` (B,).

    Raises:
        ValueError: if `method`, `noise_std`, `aug_dim` or `data_std` has a value that is not allowed, or the method is
            "replacement" and `operator` is not a `LinearOperator`.

    Examples:
        >>> from diffusers_pfgm import ChargeField, Parameterization
        >>> field = ChargeField(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        >>> parameterization = Parameterization()
        >>> first_number = LinearOperator(lambda x: x[:, :1], lambda y: torch.nn.functional.pad(y, (0, 1)))
        >>> guided = GuidedByMeasurement(field, parameterization, first_number, torch.tensor([[1.0]]))
        >>> midpoint = torch.zeros(1, 2)  # the point between the two charges
        >>> [f"{Denoiser(model, parameterization)(midpoint, 0.5)[0, 0].abs():.2f}" for model in (field, guided)]
        ['0.00', '0.76']
    """

    is_guided = True

    def __init__(
        self,
        model: Callable[..., Any],
        parameterization: Parameterization,
        operator: Operator,
        measurement: torch.Tensor,
        noise_std: float = 0.05,
        aug_dim: float | None = 1.0,
        data_std: float = 0.5,
        method: str = "guidance",
        sigma_of_call: Callable[[Any], Any] | None = None,
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
                "`operator` is not a LinearOperator, so the measured part of x cannot be replaced. "
                "Use `method='guidance'`, or make it a LinearOperator with an adjoint."
            )
        self.denoiser = Denoiser(model, parameterization, **model_kwargs)
        self.dtype = self.denoiser.dtype
        self.device = measurement.device
        self.parameterization = parameterization
        self.aug_dim = check_aug_dim(aug_dim)
        self.operator = operator
        self.measurement = measurement
        self.method = method
        self.measurement_variance = max(noise_std**2, RIDGE)
        self.data_std = data_std
        self.sigma_of_call = sigma_of_call or parameterization.sigma

    @torch.inference_mode(False)  # in inference mode a measurement has no gradient
    @torch.no_grad()
    def __call__(
        self, sample: torch.Tensor, timestep: float | torch.Tensor, return_dict: bool = False
    ) -> tuple[torch.Tensor]:
        """Return the guided output (B, C', *) at c_in x = `sample` (B, C, *) and `timestep`, a number, () or (B,).

        Raises:
            ValueError: if `measurement` has another shape than the operator returns.
        """
        parameterization = self.parameterization
        noise_level = parameterization.noise_level_at(timestep, sample.ndim)
        sigma = self.sigma_of_call(timestep)
        x = at_least_float32(sample) / parameterization.c_in(noise_level)
        denoised = self.denoiser(x, sigma)
        measured = self.operator(denoised)
        if self.measurement.shape not in (measured.shape, (1, *measured.shape[1:])):
            raise ValueError(
                f"`measurement` must have the shape {tuple(measured.shape)} that `operator` returns, or one row of it, "
                f"but has {tuple(self.measurement.shape)}."
            )
        residual = measurement_like(self.measurement, x) - measured
        operator = linearized(self.operator, denoised)
        if self.method == "replacement":
            guided = denoised + operator.pseudo_inverse(residual)
        else:
            guided = self._guided(x, sigma, denoised, residual, operator)
        return (parameterization.target(guided, x, noise_level),)

    def _guided(
        self,
        x: torch.Tensor,
        sigma: float | torch.Tensor,
        denoised: torch.Tensor,
        residual: torch.Tensor,
        operator: LinearOperator,
    ) -> torch.Tensor:
        """x̂_y (B, C, *) from x̂ = `denoised` and y − A x̂ = `residual`."""
        size = x[0].numel()
        squares = (x - denoised).flatten(1).square().sum(1)
        sigma = to_tensor(sigma, x.dtype, x.device)
        noise_variance = sigma.flatten().square().expand_as(squares)  # s²
        if math.isfinite(self.aug_dim):
            noise_variance = (squares + self.aug_dim * noise_variance) / (size + self.aug_dim)
        covariance = self.data_std**2 * noise_variance / (noise_variance + self.data_std**2)  # ρ²
        gradient = operator.adjoint(operator.solve(residual, covariance, self.measurement_variance))  # v
        move = _limit_norm(gradient * append_dims(noise_variance, x.ndim), MAX_MOVE * (size * noise_variance).sqrt())
        change = self.denoiser(x + move, sigma) - denoised
        limit = torch.full_like(noise_variance, MAX_CHANGE * self.data_std * math.sqrt(size))
        return denoised + _limit_norm(change, limit)


def _limit_norm(vectors: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Vectors (B, *), scaled to norms of at most `limits` (B,). A vector that is not finite becomes 0."""
    norms = torch.linalg.vector_norm(vectors.flatten(1), dim=1).clamp(min=torch.finfo(vectors.dtype).tiny)
    return (vectors * append_dims((limits / norms).clamp(max=1), vectors.ndim)).nan_to_num(0.0, 0.0, 0.0)
