r"""The noise level that a sample carries at finite D, estimated from the sample itself.

A noisy sample x = y + s g with g ~ N(0, I) carries the noise level s, but a network is called with σ. With D augmented
dimensions the kernel has s = σ √(D / χ²_D) (`physics.kernel`). At D = 64 its standard deviation is 9 % of σ, at D = 1
it has no mean. In many dimensions, however, s can be estimated from x. With the mean μ of all numbers of the data, the
mean square deviation

    T = ‖x − μ‖² / N,        m = ‖y − μ‖² / N   of a clean sample,   with mean σ_d² and variance V over the data,

satisfies T = m + 2 s g·(y − μ)/N + s² ‖g‖²/N, and hence, for a given s,

    E[T | s] = s² + σ_d²,        Var[T | s] = V + 4 s² σ_d²/N + 2 s⁴/N.

The estimate ŝ is the posterior geometric mean of s for a normal distribution of T,

    ŝ(x, σ) = exp E[ln s | T, σ],        p(ln s | T, σ) ∝ (σ/s)^D e^(−D σ²/(2 s²)) · N(T; E[T | s], Var[T | s]),

whose first factors are the density of ln s for χ²_D. ŝ is a function of x and σ alone, and any such function may scale
the inputs and outputs of a network. It becomes σ as D → ∞, and √(T − σ_d²) if the noise is much larger than the data.
The one-dimensional integral is computed by the trapezoid rule, with nodes that are dense around the maximum of the
integrand.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .tensors import append_dims, to_tensor

NUM_NODES = 64
# The integral extends beyond the maxima of prior and likelihood by RANGE standard deviations of the prior of ln s, but
# at most by MAX_RANGE in ln s: at small D the exponential or the likelihood makes the integrand vanish there.
RANGE = 6.0
MAX_RANGE = 5.0
LARGEST_RATIO = 1e15  # limit of x − μ and of (T − E[T | s])/s², whose squares are then below the largest float32


@dataclass(frozen=True)
class NoiseEstimate:
    """Estimates the noise level s of a sample from x and σ.

    Args:
        aug_dim: D, finite.
        data_mean: μ, the mean of all numbers of the data.
        data_std: σ_d, the root mean square deviation of the data from μ.
        mean_square_std: √V, the standard deviation of ‖y − μ‖²/N over the samples of the data.

    Examples:
        >>> estimate = NoiseEstimate(aug_dim=1.0, data_mean=0.0, data_std=0.5, mean_square_std=0.05)
        >>> x = 3.0 * torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        >>> estimate(x, 1.0).flatten()  # the prior of s has its largest density at 1, but x has a noise level of 3
        tensor([3.0382, 3.0620])
    """

    aug_dim: float
    data_mean: float
    data_std: float
    mean_square_std: float

    def __call__(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """Return ŝ (B, 1, ...), in the dtype of x but at least float32.

        Args:
            x: noisy samples (B, *), in data units.
            sigma: noise level σ, a number, () or (B, 1, ...).
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        size = x[0].numel()
        variance = self.data_std**2
        distances = (x.flatten(1).to(dtype) - self.data_mean).clamp(-LARGEST_RATIO, LARGEST_RATIO)
        deviation = distances.square().mean(1)
        sigma = to_tensor(sigma, dtype, x.device).flatten().expand(len(x))
        log_sigma = sigma.log().unsqueeze(1)
        excess = (deviation - variance).unsqueeze(1)
        log_s, log_spacing = self._nodes(deviation.detach() - variance, sigma.detach(), size)
        inverse = torch.exp(-2 * log_s)  # 1/s²
        difference = (excess * inverse - 1).clamp(-LARGEST_RATIO, LARGEST_RATIO)  # (T − E[T | s]) / s²
        spread = (self.mean_square_std * inverse).square() + (2 + 4 * variance * inverse) / size  # Var[T | s] / s⁴
        log_ratio = log_s - log_sigma
        log_prior = -self.aug_dim * (log_ratio + torch.expm1(-2 * log_ratio) / 2)
        log_likelihood = -difference.square() / (2 * spread) - spread.log() / 2 - 2 * log_s
        weights = (log_prior + log_likelihood + log_spacing).softmax(1)
        estimate = (weights * log_s).sum(1).exp()
        return append_dims(estimate, x.ndim)

    def _nodes(self, excess: torch.Tensor, sigma: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The nodes ln s (B, K) of the integral, and the logarithm (B, K) of their spacing but for a factor.

        They are at ln s = c + w sinh(a t) for equally spaced t in [-1, 1]. c and w are the mean and standard deviation
        of a normal approximation: the product of the prior's, at its mode s = σ, and of the likelihood's, at s² = T −
        σ_d². The scale a is such that the nodes reach the ends of the prior and of the likelihood.
        """
        dim = self.aug_dim
        prior_std = (2 * dim) ** -0.5
        smallest = sigma.square() / (1 + 5 * (2 / dim) ** 0.5 + 25 / dim)  # s² is almost never smaller
        square = torch.maximum(excess, smallest)
        spread = (self.mean_square_std / square).square() + (2 + 4 * self.data_std**2 / square) / size
        likelihood_std = spread.sqrt() / 2
        log_sigma, log_peak = sigma.log(), square.log() / 2
        log_end = torch.maximum(log_sigma, (square + 3 * self.mean_square_std).log() / 2)  # upper end of the likelihood
        share = prior_std**2 / (prior_std**2 + likelihood_std.square())
        centre = torch.lerp(log_sigma, log_peak, share)
        width = likelihood_std * share.sqrt()
        margin = min(RANGE * prior_std, MAX_RANGE)
        reach = torch.maximum(centre - log_sigma, log_end - centre) + margin
        scale = torch.asinh(reach / width).unsqueeze(1)
        t = scale * torch.linspace(-1, 1, NUM_NODES, dtype=scale.dtype, device=scale.device)
        log_s = centre.unsqueeze(1) + width.unsqueeze(1) * t.sinh()
        # Below this the prior is 0, but 1/s⁴ could overflow.
        return torch.maximum(log_s, log_sigma.unsqueeze(1) - MAX_RANGE), t.cosh().log()
