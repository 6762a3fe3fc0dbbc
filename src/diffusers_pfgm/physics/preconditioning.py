r"""What a network predicts, and the posterior mean x̂ that it stands for.

Whatever follows a network (solver, loss, likelihood) works on x̂ = E[y | x, σ] alone; here is the one place where x̂ is
read from an output F, and where an output's target is made. With σ the height, at D = 1 the paper's z:

    field           F = √N (x̂ − x, −z) / (‖(x̂ − x, z)‖ + γ), C + 1 channels       PFGM, arXiv 2209.11178, section 3.2
    sample          x̂ = F
    epsilon         x̂ = x − σ F, so that F = dx/dσ
    v_prediction    x̂ = x / (1 + σ²) − σ F / √(1 + σ²)                             arXiv 2202.00512, appendix D

Plain, a network sees x and σ. With `sigma_data` it is preconditioned as in EDM (arXiv 2206.00364, table 1), which
PFGM++ (arXiv 2302.04265, section 4) carries over to any D by r = σ√D: it sees x / √(σ² + σ_d²) and ln(σ) / 4, and

    epsilon         x̂ = σ_d² x / (σ² + σ_d²) + σ σ_d F / √(σ² + σ_d²)              v_prediction: the same with −F

With `train_sigmas` it is one of the DDPM family (arXiv 2006.11239), which has learned at so many heights, each known by
its index t: it sees x / √(1 + σ²), whose variance is preserved, and t. Its √ᾱ is 1/√(1 + σ²); x̂ is read as from a plain
network. Between the heights ln σ is linear in t, as in diffusers.

The field's x̂. With p = ‖F_x‖/√N and q = −F_z/√N, the distance a = ‖x̂ − x‖ and L = √(a² + z²), one unknown w makes both,

    p = a w,    q = z w,    w = 1 / (L + γ),        x̂ = x + F_x / (√N w).

Either tells it: w_q = q/z, and from p alone, in closed form,

    w_p = (1 − p²) / (γ + √(γ² p² + z² (1 − p²))).

On an exact field they are the same. A network errs in both, and an error δ of p or q is one of δ p / g or δ / z in w,
with g = −p dp/dw = γ (1 − γ w) + z² w, which is the root above. So their mean is taken by the inverse squares of these,
as of any two measurements, and z² p² + g² = γ² p² + z²,

    w = (z p² q + g² w_p) / (γ² p² + z²):

near the plane, where q is all but 0, it is w_p, far from it, where p is all but 1, it is w_q. Far from the data, too,
p is all but 1, and w_p drowns in the errors of a network or in float32's: its share g² falls to 0 as 1 − p² falls from
2e-3 to 1e-3. Before that q is brought between its bounds, 0 and z / (z + γ) where a = 0, so that near the plane a
network's v_z does not count, however wrong it is. The reference takes q above z = 5 and an approximation of w_p below
(its Appendix B.2.3), and so jumps there by what its network is wrong.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from .tensors import interpolate, scaled_to_reach, working_dtype

PREDICTION_TYPES = ("field", "sample", "epsilon", "v_prediction")

FAR = 1e-3  # of 1 − p² of the field: up to there p does not tell the distance
LOST = 8  # roundings of x that x̂ must exceed to be told from them

ZERO_SNR_SIGMA = 2.0**40  # stands for σ = ∞: far enough that no digit of float64 remembers x̂

Scalar = float | torch.Tensor  # a number, or a tensor that broadcasts against x


@functools.lru_cache(maxsize=8)
def _log_sigmas(train_sigmas: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(train_sigmas, dtype=dtype, device=device).log()


def normalize_field(offset: torch.Tensor, z: torch.Tensor, gamma: float) -> torch.Tensor:
    """v (B, N + 1) from x̂ − x (B, N) and z (B,), in the offset's dtype."""
    field, factor = scaled_to_reach(torch.cat([offset, -z.to(offset.dtype).unsqueeze(1)], dim=1))
    length = torch.linalg.vector_norm(field, dim=1, keepdim=True) + gamma / factor
    return field * (math.sqrt(offset.shape[1]) / length.clamp(min=torch.finfo(field.dtype).tiny))


def field_channels(v: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """v (B, N + 1) as a network returns it for data of `shape` (B, C, *): (B, C + 1, *), v_z all over the last."""
    v_z = v[:, -1].view(-1, *[1] * (len(shape) - 1)).expand(-1, 1, *shape[2:])
    return torch.cat([v[:, :-1].view(shape), v_z], dim=1)


@dataclass(frozen=True)
class Parameterization:
    """Reads x̂ from a network's output, and makes the target that a network learns.

    Args:
        prediction_type: "field", "sample", "epsilon" or "v_prediction".
        gamma: γ of the field, in data units.
        sigma_data: EDM's preconditioning for data of this standard deviation; None for a plain network.
        train_sigmas: σ of each training timestep of a network of the DDPM family, rising; None for another network.
        learns_variance: whether the network also predicts a variance, in C further channels, which are not used here
            (arXiv 2102.09672).

    Raises:
        ValueError: if an argument is not one of these.
    """

    prediction_type: str = "field"
    gamma: float = 5.0
    sigma_data: float | None = None
    train_sigmas: tuple[float, ...] | None = None
    learns_variance: bool = False

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"`prediction_type` must be one of {PREDICTION_TYPES}, but is {self.prediction_type!r}.")
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"`gamma` must be a finite number >= 0, but is {self.gamma}.")
        if self.sigma_data is not None and not self.sigma_data > 0:
            raise ValueError(f"`sigma_data` must be a number > 0 or None, but is {self.sigma_data}.")
        if self.learns_variance and self.prediction_type == "field":
            raise ValueError(
                "`variance_type` 'learned' and 'learned_range' are for networks of diffusion models, but "
                "`prediction_type` is 'field', which has no variance. Set `variance_type=None`."
            )
        if self.train_sigmas is not None:
            if self.sigma_data is not None:
                raise ValueError(
                    f"`sigma_data` = {self.sigma_data} preconditions a network as in EDM, but a beta schedule says "
                    "that it is of the DDPM family. Set one of them to None."
                )
            if self.train_sigmas[-1] >= ZERO_SNR_SIGMA and self.prediction_type not in ("sample", "v_prediction"):
                raise ValueError(
                    f"`prediction_type` {self.prediction_type!r} says nothing about the data where sigma is infinite, "
                    "as with zero terminal SNR. Use a network for 'v_prediction' or 'sample'."
                )

    def output_channels(self, channels: int) -> int:
        """Channels that a network must return for data of `channels`: one more for the field's z."""
        if self.learns_variance:
            return 2 * channels
        return channels + 1 if self.prediction_type == "field" else channels

    def allows_channels(self, found: int, channels: int) -> bool:
        """Whether a network may return `found` channels for data of `channels`.

        With a learned variance both are allowed, since some pipelines of diffusers cut the variance off themselves.
        """
        return found == self.output_channels(channels) or (self.learns_variance and found == channels)

    def check_output(self, output: torch.Tensor, x: torch.Tensor) -> None:
        """Raise a ValueError that says what is wrong if `output` cannot belong to `x`."""
        expected = (x.shape[0], self.output_channels(x.shape[1]), *x.shape[2:])
        same = output.ndim == x.ndim and self.allows_channels(output.shape[1], x.shape[1])
        if not same or (output.shape[0], *output.shape[2:]) != (x.shape[0], *x.shape[2:]):
            raise ValueError(
                f"`model_output` must have the shape {expected} for prediction_type {self.prediction_type!r}, but has "
                f"{tuple(output.shape)}. A network for 'field' returns one channel more than the data, one that also "
                "predicts a variance (`variance_type` 'learned' or 'learned_range') twice as many, any other as many: "
                "set `out_channels` of the network, or `prediction_type` or `variance_type` of the scheduler."
            )

    def input_scale(self, sigma: Scalar) -> Scalar:
        """c_in: a network sees c_in x."""
        if self.train_sigmas is not None:
            return (1 + sigma**2) ** -0.5
        return 1.0 if self.sigma_data is None else (sigma**2 + self.sigma_data**2) ** -0.5

    def label(self, sigma: Scalar) -> Scalar:
        """c_noise: the timestep that a network sees."""
        if self.train_sigmas is not None:
            return self._between(sigma, to_label=True)
        if self.sigma_data is None:
            return sigma
        return (sigma.log() if isinstance(sigma, torch.Tensor) else math.log(sigma)) / 4

    def sigma(self, label: Scalar) -> Scalar:
        """The inverse of `label`."""
        if self.train_sigmas is not None:
            return self._between(label, to_label=False)
        if self.sigma_data is None:
            return label
        return (4 * label).exp() if isinstance(label, torch.Tensor) else math.exp(4 * label)

    def _between(self, value: Scalar, to_label: bool) -> Scalar:
        if not isinstance(value, torch.Tensor):
            found = self._between(torch.tensor(value, dtype=torch.float64), to_label)
            return float(found)
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        log_sigmas = _log_sigmas(self.train_sigmas or (), value.dtype, value.device)
        labels = torch.arange(len(log_sigmas), dtype=value.dtype, device=value.device)
        return (
            interpolate(value.log(), log_sigmas, labels) if to_label else interpolate(value, labels, log_sigmas).exp()
        )

    def denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: Scalar) -> torch.Tensor:
        """x̂ from a network's output.

        Args:
            output: (B, C', *), see `output_channels`.
            x: (B, C, *), in data units (not scaled by `input_scale`).
            sigma: the height, a number or (B, 1, ...), broadcast against x.

        Returns:
            x̂ (B, C, *).
        """
        if self.prediction_type == "field":
            return self._denoised_field(output[:, :-1], output[:, -1:], x, sigma)
        if self.learns_variance:
            output = output[:, : x.shape[1]]
        c_skip, c_out = self._coefficients(sigma)
        if self.prediction_type == "sample":
            return c_out * output
        denoised = c_skip * x + c_out * output
        plain = self.prediction_type == "epsilon" and self.sigma_data is None and self.train_sigmas is None
        return _without_rounding(denoised, x) if plain else denoised

    def target(self, denoised: torch.Tensor, x: torch.Tensor, sigma: Scalar) -> torch.Tensor:
        """The output F that stands for x̂ = `denoised`, of x's shape or with the field's further channel."""
        if self.prediction_type == "field":
            height = torch.as_tensor(sigma, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
            height = height.expand(x.shape[0], *[1] * (x.ndim - 1)).flatten()
            return field_channels(normalize_field((denoised - x).flatten(1), height, self.gamma), x.shape)
        c_skip, c_out = self._coefficients(sigma)
        return (denoised - c_skip * x) / c_out

    def guided_field(
        self, output: torch.Tensor, unconditional: torch.Tensor, scale: float, x: torch.Tensor, sigma: Scalar
    ) -> torch.Tensor:
        """The field whose x̂ is x̂_u + scale · (x̂_c − x̂_u): classifier-free guidance (arXiv 2207.12598).

        Other outputs are linear in x̂, so that they are combined as they are.

        Args:
            output: (B, C', *), for a condition.
            unconditional: (B, C', *), without.
            scale: 1 for the condition alone.
            x: (B, C, *), in data units.
            sigma: the height, a number or (B, 1, ...).
        """
        denoised = torch.lerp(self.denoised(unconditional, x, sigma), self.denoised(output, x, sigma), scale)
        return self.target(denoised, x, sigma)

    def _coefficients(self, sigma: Scalar) -> tuple[Scalar, Scalar]:
        """c_skip and c_out in x̂ = c_skip x + c_out F."""
        if self.prediction_type == "sample":
            return 0.0, 1.0
        sign = 1.0 if self.prediction_type == "epsilon" else -1.0
        if self.sigma_data is not None:
            total = sigma**2 + self.sigma_data**2
            return self.sigma_data**2 / total, sign * self.sigma_data * sigma / total**0.5
        if self.prediction_type == "epsilon":
            return 1.0, -sigma
        return 1 / (1 + sigma**2), -sigma / (1 + sigma**2) ** 0.5

    def _denoised_field(
        self, v_x: torch.Tensor, v_z: torch.Tensor, x: torch.Tensor, z: float | torch.Tensor
    ) -> torch.Tensor:
        dims, size, gamma, wide = tuple(range(1, x.ndim)), v_x[0].numel(), self.gamma, working_dtype(x.device)
        length = torch.linalg.vector_norm(v_x, dim=dims, keepdim=True, dtype=wide)
        p_squared = (length.square() / size).clamp(max=1 - torch.finfo(wide).eps)
        q = (v_z.mean(dims, keepdim=True, dtype=wide) * -(size**-0.5)).clamp(min=0).clamp(max=z / (z + gamma))
        rest = 1 - p_squared
        g_squared = gamma**2 * p_squared + z**2 * rest
        w_p = rest / (g_squared.sqrt() + gamma)
        trusted = g_squared * (rest / FAR - 1).clamp(0, 1)
        w = (z * (p_squared * q) + trusted * w_p) / (z**2 * p_squared + trusted)
        # The bound only keeps a poor network's x̂ finite: an exact field of data within 1e5 (γ + z) never meets it.
        farthest = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=wide) + 1e5 * (gamma + z)
        denoised = torch.addcdiv(x, v_x, torch.maximum(w, 1 / farthest).to(x.dtype), value=size**-0.5)
        return _without_rounding(denoised, x)


def _without_rounding(denoised: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x̂ = x − a, or 0 where it is no more than what rounding leaves of an x as far away as small D starts it.

    Only data are near 0 then, and so is the best that is known of x̂. The flow does not feel the difference, which is a
    rounding of x, until its last step, where it would be noise far beyond the data.
    """
    dims, wide = tuple(range(1, x.ndim)), working_dtype(x.device)
    found, far = (torch.linalg.vector_norm(each, dim=dims, keepdim=True, dtype=wide) for each in (denoised, x))
    return denoised * (found > LOST * torch.finfo(x.dtype).eps * far)
