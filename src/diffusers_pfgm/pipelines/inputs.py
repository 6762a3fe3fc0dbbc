"""Checks of a pipeline's arguments, the shape of its latents, and images as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..flow.points import check_points
from ..physics.charges import check_finite
from ..physics.tensors import at_least_float32
from ..schedulers.conversion import check_field_config
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..utils.checks import check_whole_number
from .outputs import OUTPUT_TYPES

PIL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by number of channels


def check_inputs(
    config: Any, scheduler: PoissonFlowScheduler, batch_size: int | None, latents: torch.Tensor | None, output_type: str
) -> None:
    """Check that the network, the scheduler and the arguments of a call fit each other.

    Args:
        config: the configuration of the network, or of a `ChargeField`.
        scheduler: the scheduler.
        batch_size: the user's batch size; None if it follows from the latents, or is 1.
        latents: the user's latents; None if they are drawn.
        output_type: one of `OUTPUT_TYPES`.

    Raises:
        ValueError: if the scheduler belongs to another field than the `ChargeField`, if the network has condition
            channels, if its output channels are not those of the prediction type, if `output_type` is unknown or
            impossible for the data's shape, if `latents` is not a tensor of finite real numbers or has another shape
            than the network's, or as in `latents_shape`.
    """
    if latents is not None:
        check_points("latents", latents)
    parameterization = scheduler.parameterization
    channels = config.in_channels
    check_field_config(config, scheduler)
    data_channels = config.out_channels - parameterization.output_channels(0)
    if config.out_channels < channels and 0 < data_channels < channels:
        raise ValueError(
            f"`unet` has {channels} input channels and predicts {data_channels}, so the other "
            f"{channels - data_channels} are condition channels, such as a measured image, which this pipeline does "
            "not supply. Sample in a loop of `scheduler.step`, and concatenate the condition to the network's input."
        )
    if not parameterization.allows_channels(config.out_channels, channels):
        raise ValueError(
            f"`unet` returns {config.out_channels} channels for {channels}, but prediction_type "
            f"{parameterization.prediction_type!r} of the scheduler needs "
            f"{parameterization.output_channels(channels)}. Change `out_channels` of the network, or `prediction_type` "
            "of the scheduler, or its `variance_type` if the network also predicts a variance."
        )
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', but is {output_type!r}.")
    if output_type == "pil" and channels not in PIL_MODES:
        raise ValueError(f"output_type 'pil' cannot show {channels} channels. Use 'np' or 'pt'.")
    shape = latents_shape(config, batch_size, latents)
    if output_type in ("pil", "np") and len(shape) != 4:
        raise ValueError(f"output_type {output_type!r} is for images (B, C, H, W), not {shape}. Use 'pt'.")
    if latents is not None and latents.shape != shape:
        raise ValueError(
            f"`latents` must have the shape {shape} for this network and batch, but have {tuple(latents.shape)}. Draw "
            "them with `scheduler.sample_prior(shape)`."
        )


def latents_shape(config: Any, batch_size: int | None, latents: torch.Tensor | None) -> tuple[int, ...]:
    """Return the shape (B, C, *) of the latents of a call.

    Args:
        config: the configuration of the network, or of a `ChargeField`.
        batch_size: B; None for that of `latents`, or 1 without them.
        latents: the user's latents, which also give the size of an image if the network has no `sample_size`.

    Raises:
        ValueError: if `batch_size` is not a whole number ≥ 1, or if neither the network nor `latents` gives a size.
    """
    if batch_size is None:
        batch_size = 1 if latents is None else latents.shape[0]
    batch_size = check_whole_number("batch_size", batch_size, 1)
    size = config.sample_size
    if size is None:
        if latents is None:
            raise ValueError(
                "`unet` has no `sample_size`. Set it by `pipe.unet.register_to_config(sample_size=(height, width))`, "
                "or pass `latents` of the size that you want to a pipeline that accepts them."
            )
        size = latents.shape[2:]
    return (batch_size, config.in_channels, *((size, size) if isinstance(size, int) else size))


def images_to_tensor(images: Any, unet_config: Any) -> torch.Tensor:
    """Convert images, in any form that a pipeline returns for an `output_type`, to data.

    Args:
        images: a PIL image or a list of them, a NumPy array (B, H, W, C) or a tensor (B, C, H, W), the last two in
            [0, 1].
        unet_config: the configuration of the network, for its `in_channels` and `sample_size`.

    Returns:
        (B, C, H, W) in [-1, 1], on the device of `images`, in its dtype but at least float32.

    Raises:
        ValueError: if the images do not have the network's channels and size, or have values that are NaN or outside
            [0, 1].
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, list | tuple):
        images = _pil_to_numpy(images, unet_config.in_channels)
    if isinstance(images, np.ndarray):
        if images.ndim != 4:
            raise ValueError(f"`images` as an array must have the shape (B, H, W, C), but has {images.shape}.")
        images = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        is_tensor = isinstance(images, torch.Tensor)
        raise ValueError(
            "`images` must be PIL images, or an array (B, H, W, C) or tensor (B, C, H, W) of floating-point numbers in "
            f"[0, 1], but are {f'{images.dtype}. Divide bytes by 255' if is_tensor else type(images).__name__}."
        )
    size = unet_config.sample_size
    size = images.shape[2:] if size is None else (size, size) if isinstance(size, int) else tuple(size)
    expected = (unet_config.in_channels, *size)
    if images.shape[1:] != expected or not len(images):
        raise ValueError(
            f"`images` must be one or more with channels, height and width {expected} for this network, but are "
            f"(B, C, H, W) = {tuple(images.shape)}. Resize or convert them."
        )
    check_finite("images", images)
    lowest, highest = images.min().item(), images.max().item()
    if lowest < 0 or highest > 1:
        raise ValueError(
            f"`images` must be in [0, 1], but go from {lowest:.4g} to {highest:.4g}. Pass images / 2 + 0.5 for data in "
            "[-1, 1]."
        )
    return at_least_float32(images) * 2 - 1


def _pil_to_numpy(images: Sequence[Any], channels: int) -> np.ndarray:
    """Return PIL images as an array (B, H, W, C) in [0, 1], float32."""
    mode = PIL_MODES.get(channels)
    for index, image in enumerate(images):
        if not isinstance(image, Image.Image) or image.mode != mode:
            kind = f"one of mode {image.mode!r}" if isinstance(image, Image.Image) else type(image).__name__
            raise ValueError(
                f"`images` in a list must be PIL images of mode {mode!r} for a network of {channels} channels, but "
                f"index {index} is {kind}. Convert it by `image.convert({mode!r})`, or pass one array or tensor for "
                "all images."
            )
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"`images` must be one or more of one size, but have the sizes {sorted(sizes)}. Resize them.")
    pixels = np.stack([np.asarray(image, dtype=np.float32) for image in images]) / 255
    return pixels if pixels.ndim == 4 else pixels[..., None]
