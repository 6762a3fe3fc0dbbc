"""The check of a measurement: its shape and kind, its size, and the operator that made it."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..physics.charges import check_finite
from .linear_operator import LinearOperator, Operator, check_adjoint
from .operators import Inpainting

# The largest norm of a measurement of images in [-1, 1] allows for this noise, in standard deviations, and for this
# ratio of the operator's norm to its iterative estimate, which is a lower bound.
MAX_NOISE = 5.0
NORM_MARGIN = 1.1


def as_measurement(values: Any) -> torch.Tensor:
    """Return a measurement as a tensor (B, *').

    Args:
        values: a tensor, an array, or nested lists of numbers.

    Raises:
        ValueError: if torch cannot convert `values`, or they are a single number.
    """
    try:
        measurement = torch.as_tensor(values)
    except (RuntimeError, TypeError, ValueError) as error:  # torch's errors for other objects
        raise ValueError(
            f"`measurement` must be a tensor (B, ...) of numbers, but is {type(values).__name__}. Measure images as "
            "tensors (B, C, H, W) in [-1, 1]."
        ) from error
    if not measurement.ndim:
        raise ValueError("`measurement` must have the shape (B, ...), but is a single number.")
    return measurement


def check_measurement(
    measurement: torch.Tensor, operator: Operator, noise_std: float, blank_images: torch.Tensor
) -> torch.Tensor:
    """Check a measurement and its operator, and return the measurement expanded to one for each image.

    Args:
        measurement: (B, *') or (1, *').
        operator: A.
        noise_std: the standard deviation of the noise.
        blank_images: zeros (B, C, *), for the shape, device and dtype of the images.

    Raises:
        ValueError: if they do not fit each other, see `PFGMInversePipeline.__call__`.
    """
    count = len(blank_images)
    blank_measurement = operator(blank_images)
    if not isinstance(blank_measurement, torch.Tensor) or blank_measurement.ndim == 0:
        is_tensor = isinstance(blank_measurement, torch.Tensor)
        raise ValueError(
            "`operator` must return a tensor (B, ...) with one measurement of each image, but returns "
            f"{'one number for all' if is_tensor else type(blank_measurement).__name__}."
        )
    if len(blank_measurement) != count:
        raise ValueError(
            f"`operator` returns {len(blank_measurement)} measurements of {count} images. It must return one of each. "
            "Was the operator, or its mask, made for another `batch_size`?"
        )
    expected = tuple(blank_measurement.shape[1:])
    if tuple(measurement.shape[1:]) != expected or len(measurement) not in (1, count):
        raise ValueError(
            f"`measurement` must have the shape {(count, *expected)}, or {(1, *expected)} for all, which `operator` "
            f"returns for images {tuple(blank_images.shape)}, but has {tuple(measurement.shape)}."
        )
    if measurement.is_complex() != blank_measurement.is_complex():
        kinds = ["complex" if each.is_complex() else "real" for each in (measurement, blank_measurement)]
        raise ValueError(
            f"`measurement` is {kinds[0]}, but `operator` returns {kinds[1]} numbers. Both must be the same."
        )
    measurement = measurement.expand(count, *expected)
    if isinstance(operator, Inpainting):
        measurement = operator(measurement)
    check_finite("measurement", measurement)
    if isinstance(operator, LinearOperator):
        check_adjoint(operator, blank_images)
        # An image in [-1, 1] has a norm ≤ √N, so a measurement without noise has a norm ≤ ‖A‖ √N.
        largest_norm = float(torch.linalg.vector_norm(measurement.reshape(count, -1), dim=1).max())
        noise_dim = measurement[0].numel() * (2 if blank_measurement.is_complex() else 1)
        noise_norm = MAX_NOISE * max(noise_std, 0.0) * math.sqrt(noise_dim)
        norm_limit = operator.norm(blank_images) * math.sqrt(blank_images[0].numel()) + noise_norm
        if largest_norm > NORM_MARGIN * norm_limit:
            raise ValueError(
                f"`measurement` has the norm {largest_norm:.4g}, but of images in [-1, 1] it is at most "
                f"{norm_limit:.4g}. Scale bytes by / 127.5 - 1 before they are measured, or pass a larger `noise_std`."
            )
    return measurement
