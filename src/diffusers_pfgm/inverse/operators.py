"""The usual linear measurements: masks, lower resolution, blur, and random linear combinations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..physics.tensors import draw
from ..utils.checks import check_whole_number
from .linear_operator import LinearOperator

BOUNDARIES = {"zero": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class Inpainting(LinearOperator):
    """Observation of a part of each sample, y = mask · x. y has the shape of x, and is ignored where the mask is 0.

    Args:
        mask: a tensor or array, True or 1 where x is observed: (*), or a shape that broadcasts against it, for the same
            mask of every sample; (B, *) for a mask of each.

    Raises:
        ValueError: if `mask` has other values than 0 and 1, or no 1; in a call if its shape does not fit the data.
    """

    def __init__(self, mask: torch.Tensor | np.ndarray) -> None:
        mask = torch.as_tensor(mask)
        if not ((mask == 0) | (mask == 1)).all() or not mask.any():
            raise ValueError(
                f"`mask` must hold 1 (observed) and 0 only, with a 1 at least, but has the values "
                f"{mask.unique().tolist()!r:.80}. Make one by a comparison, such as `mask > 0.5`."
            )
        self.mask = mask.bool()
        super().__init__(self._hide, self._hide, gram=mask)

    def _hide(self, x: torch.Tensor) -> torch.Tensor:
        sizes = zip(reversed(self.mask.shape), reversed(x.shape), strict=False)
        if self.mask.ndim > x.ndim or any(size not in (1, expected) for size, expected in sizes):
            raise ValueError(
                f"`mask` must have the shape {tuple(x.shape[1:])} of a sample, or one that broadcasts against it, or "
                f"{tuple(x.shape)} for a mask for each, but has {tuple(self.mask.shape)}. Masks (B, H, W) are "
                "`mask.unsqueeze(1)`."
            )
        self.mask = self.mask.to(x.device)
        return torch.where(self.mask, x, 0)


class SuperResolution(LinearOperator):
    """Observation of images (B, C, H, W) at a lower resolution: means over blocks of `factor` × `factor` pixels.

    Args:
        factor: a whole number ≥ 1 that divides H and W.

    Raises:
        ValueError: if `factor` is not a whole number ≥ 1; in a call if it does not divide H and W.
    """

    def __init__(self, factor: int) -> None:
        self.factor = check_whole_number("factor", factor, 1)
        super().__init__(self._mean, self._spread, gram=1 / self.factor**2)

    def _mean(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"`factor` = {self.factor} must divide height and width of images (B, C, H, W), but `x` has the shape "
                f"{tuple(x.shape)}."
            )
        return torch.nn.functional.avg_pool2d(x, self.factor)

    def _spread(self, y: torch.Tensor) -> torch.Tensor:
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3) / self.factor**2


class Blur(LinearOperator):
    """Observation of blurred images (B, C, H, W), of the same size, with the same kernel for every channel.

    Args:
        kernel: a tensor or array (h, w), both odd.
        boundary: padding beyond the edges: "zero", "reflect", "replicate" or "circular". Defaults to "reflect".

    Raises:
        ValueError: if `kernel` has another shape or `boundary` another value; in a call if x has another shape than
            images, or `kernel` is too large for "reflect" or "circular".
    """

    def __init__(self, kernel: torch.Tensor | np.ndarray, boundary: str = "reflect") -> None:
        kernel = torch.as_tensor(kernel)
        if kernel.ndim != 2 or not all(size % 2 for size in kernel.shape):
            raise ValueError(f"`kernel` must have the shape (h, w), both odd, but has {tuple(kernel.shape)}.")
        if boundary not in BOUNDARIES:
            raise ValueError(f"`boundary` must be one of {tuple(BOUNDARIES)}, but is {boundary!r}.")
        self.kernel, self.boundary = kernel, boundary
        # The blur is linear, so its derivative at any point, here y, is the blur itself.
        super().__init__(self._blur, lambda y: torch.func.vjp(self._blur, y)[1](y)[0])

    def _blur(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4:
            raise ValueError(f"`x` must be images (B, C, H, W), but has the shape {tuple(x.shape)}.")
        height, width = (size // 2 for size in self.kernel.shape)
        # "reflect" and "circular" take the padding from the image, "reflect" without the pixels at the edges.
        lengths = [size - (self.boundary == "reflect") for size in x.shape[2:]]
        if self.boundary in ("reflect", "circular") and (height > lengths[0] or width > lengths[1]):
            raise ValueError(
                f"`kernel` {tuple(self.kernel.shape)} is too large for images {tuple(x.shape)} with `boundary` "
                f"{self.boundary!r}. Pass a smaller one, or the `boundary` 'replicate' or 'zero'."
            )
        padded = torch.nn.functional.pad(x, (width, width, height, height), mode=BOUNDARIES[self.boundary])
        kernels = self._on_device_of("kernel", x).expand(x.shape[1], 1, *self.kernel.shape)
        return torch.nn.functional.conv2d(padded, kernels, groups=x.shape[1])


class CompressedSensing(LinearOperator):
    """Observation of M random linear combinations of the elements of each sample, y (B, M), with orthonormal rows.

    Args:
        shape: shape of one sample, (*), with N elements.
        num_measurements: M, from 1 to N.
        generator: generator of the random combinations.

    Raises:
        ValueError: if M is not from 1 to N or `shape` is a number; in a call if a sample has another number of elements
            than `shape`.
    """

    def __init__(self, shape: Sequence[int], num_measurements: int, generator: torch.Generator | None = None) -> None:
        if isinstance(shape, int):
            raise ValueError(f"`shape` must be the shape of one sample, such as (1, 8, 8), but is {shape}.")
        self.shape = torch.Size(shape)
        size = self.shape.numel()
        num_measurements = check_whole_number("num_measurements", num_measurements, 1)
        if num_measurements > size:
            raise ValueError(
                f"`num_measurements` must be from 1 to the {size} elements of a sample, but is {num_measurements}."
            )
        gaussian = draw(torch.randn, (size, num_measurements), generator, torch.device("cpu"))
        self.directions = torch.linalg.qr(gaussian)[0]  # (N, M)
        super().__init__(
            self._measure,
            lambda y: (y @ self._on_device_of("directions", y).mT).unflatten(1, self.shape),
            gram=1.0,
        )

    def _measure(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        if flat.shape[1] != self.shape.numel():
            raise ValueError(
                f"`shape` {tuple(self.shape)} has {self.shape.numel()} elements, but a sample of `x` {tuple(x.shape)} "
                f"has {flat.shape[1]}. Pass the shape of one sample."
            )
        return flat @ self._on_device_of("directions", x)
