r"""The normalized field as a network's output: C + 1 channels, from which x̂ is computed.

PFGM (arXiv 2209.11178, section 3.2) trains a network on the normalized field, which points towards the data,

    F = √N (x̂ − x, −z) / (‖(x̂ − x, z)‖ + γ),

with z = σ at D = 1. With p = ‖F_x‖/√N, q = −F_z/√N and the distance a = ‖x̂ − x‖, L = √(a² + z²), one unknown w gives

    p = a w,    q = z w,    w = 1/(L + γ),        x̂ = x + F_x/(√N w).

Each of p and q determines w: w_q = q/z, and from p alone, in closed form,

    w_p = (1 − p²) / (γ + √(γ² p² + z² (1 − p²))).

For an exact field the two agree. A network errs in both. An error δ of p changes w by δ p/g and an error δ of q changes
it by δ/z, where g = −p dp/dw = γ (1 − γ w) + z² w is the root above. Weighting the two estimates by the inverse squares
of these factors, as for any two measurements, gives with z² p² + g² = γ² p² + z²

    w = (z p² q + g² w_p) / (γ² p² + z²).

Close to the plane, where q is almost 0, this is w_p. Far from the plane, where p is almost 1, it is w_q. Far from the
data p is almost 1 as well, and w_p is lost in the errors of a network or of float32, so its weight g² decreases to 0
while 1 − p² decreases from 2e-3 to 1e-3. Before that, q is limited to its possible range from 0 to z/(z + γ), the value
at a = 0, so that close to the plane a network's v_z has no effect, however wrong it is. The reference implementation
uses q above z = 5 and an approximation of w_p below (its Appendix B.2.3), and so jumps at z = 5 by its network's error.
"""

from __future__ import annotations

import math

import torch

from .preconditioning import Preconditioning, Scalar
from .prediction import Prediction, zero_where_rounded
from .tensors import append_dims, column_shape, rescale_for_squaring, to_tensor, working_dtype

P_LIMIT = 1e-3  # if 1 − p² is below this limit, the distance is not computed from p
MAX_DISTANCE = 1e5  # limit of ‖x̂ − x‖ − ‖x‖ in units of γ + z; larger than for the exact field of any usual data


def check_gamma(gamma: float) -> None:
    """Raise a ValueError unless γ is a finite number ≥ 0."""
    if not 0 <= gamma < math.inf:
        raise ValueError(f"`gamma` must be a finite number >= 0, but is {gamma}.")


def normalize_field(offset: torch.Tensor, z: torch.Tensor, gamma: float) -> torch.Tensor:
    """The normalized field (B, N + 1) from the offset x̂ − x (B, N) and z (B,), in the dtype of the offset."""
    field, factor = rescale_for_squaring(torch.cat([offset, -z.to(offset.dtype).unsqueeze(1)], dim=1))
    length = torch.linalg.vector_norm(field, dim=1, keepdim=True) + gamma / factor
    least = torch.finfo(field.dtype).tiny ** 0.5  # where there is no field, as on a charge at z = γ = 0
    return field * (math.sqrt(offset.shape[1]) / length.clamp(min=least))


def field_channels(field: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Reshape a field to a network's output.

    Args:
        field: (B, N + 1).
        shape: shape (B, C, *) of the data.

    Returns:
        (B, C + 1, *), where the last channel is constant and holds the z component.
    """
    v_z = append_dims(field[:, -1], len(shape)).expand(-1, 1, *shape[2:])
    return torch.cat([field[:, :-1].view(shape), v_z], dim=1)


class FieldPrediction(Prediction):
    """A network whose output is the normalized field.

    Args:
        preconditioning: the network's preconditioning.
        gamma: γ ≥ 0, in data units.
    """

    def __init__(self, preconditioning: Preconditioning, gamma: float) -> None:
        super().__init__(preconditioning)
        self.gamma = gamma

    def output_channels(self, channels: int) -> int:
        return channels + 1

    def denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: Scalar) -> torch.Tensor:
        v_x = output[:, :-1]
        v_z = output[:, -1:]
        z = sigma
        gamma = self.gamma
        dims = tuple(range(1, x.ndim))
        size = v_x[0].numel()
        wide = working_dtype(x.device)
        length = torch.linalg.vector_norm(v_x, dim=dims, keepdim=True, dtype=wide)
        p_squared = (length.square() / size).clamp(max=1 - torch.finfo(wide).eps)
        q = (v_z.mean(dims, keepdim=True, dtype=wide) * -(size**-0.5)).clamp(min=0).clamp(max=z / (z + gamma))
        rest = 1 - p_squared
        g_squared = gamma**2 * p_squared + z**2 * rest
        w_p = rest / (g_squared.sqrt() + gamma)
        weight = g_squared * (rest / P_LIMIT - 1).clamp(0, 1)  # g², decreasing to 0 where p is almost 1
        w = (z * (p_squared * q) + weight * w_p) / (z**2 * p_squared + weight)
        limit = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=wide) + MAX_DISTANCE * (gamma + z)
        denoised = torch.addcdiv(x, v_x, torch.maximum(w, 1 / limit).to(x.dtype), value=size**-0.5)
        return zero_where_rounded(denoised, x)

    def target(self, denoised: torch.Tensor, x: torch.Tensor, sigma: Scalar) -> torch.Tensor:
        z = to_tensor(sigma, torch.promote_types(x.dtype, torch.float32), x.device)
        z = z.expand(column_shape(x.shape)).flatten()
        return field_channels(normalize_field((denoised - x).flatten(1), z, self.gamma), x.shape)
