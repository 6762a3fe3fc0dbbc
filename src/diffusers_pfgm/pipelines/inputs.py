"""What a pipeline checks before it runs: the scheduler, the network's channels, the batch's shape, given pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..physics.charges import check_finite
from ..schedulers.conversion import check_field_config
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..utils.checks import check_whole_number
from .outputs import OUTPUT_TYPES

PIL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by channels


def check_inputs(
    config: Any, flow: PoissonFlowScheduler, batch_size: int | None, latents: torch.Tensor | None, output_type: str
) -> tuple[int, ...]:
    """The shape of a run.

    Args:
        config: of the network, or of a `ChargeField`.
        flow: the scheduler.
        batch_size: images that were asked for, if so.
        latents: the caller's starting points, if any.
        output_type: one of `OUTPUT_TYPES`.

    Raises:
        ValueError: if these do not fit each other.
    """
    parameterization, channels = flow.parameterization, config.in_channels
    check_field_config(config, flow)
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
    if batch_size is None:
        batch_size = 1 if latents is None else latents.shape[0]
    batch_size = check_whole_number("batch_size", batch_size, 1)
    size = config.sample_size
    if size is None:
        if latents is None:
            raise ValueError(
                "`unet` has no `sample_size`, so pass `latents` of the size that you want, or set it by "
                "`pipe.unet.register_to_config(sample_size=(height, width))`."
            )
        size = latents.shape[2:]
    shape = (batch_size, channels, *((size, size) if isinstance(size, int) else size))
    if output_type in ("pil", "np") and len(shape) != 4:
        raise ValueError(f"output_type {output_type!r} is for images (B, C, H, W), not {shape}. Use 'pt'.")
    if latents is not None:
        check_finite("latents", latents)
        if latents.shape != shape:
            raise ValueError(
                f"`latents` must have the shape {shape} for this network and batch, but have "
                f"{tuple(latents.shape)}. Draw them with `scheduler.sample_prior(shape)`."
            )
    return shape


def images_to_tensor(images: Any, unet_config: Any) -> torch.Tensor:
    """Pictures, as a pipeline returns them for any `output_type`, as data.

    Args:
        images: a PIL image or a list of them, a NumPy array (B, H, W, C) or a tensor (B, C, H, W), the last two in
            [0, 1].
        unet_config: of the network, for its `in_channels` and `sample_size`.

    Returns:
        (B, C, H, W) in [-1, 1], on the tensor's device, in float32 or the wider type that was given.

    Raises:
        ValueError: if a picture is not of the network's channels and size, or holds NaN or anything beyond [0, 1].
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
        kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(
            "`images` must be PIL images, or an array (B, H, W, C) or tensor (B, C, H, W) of floating-point numbers in "
            f"[0, 1], but are {kind}. Divide bytes by 255."
        )
    size = unet_config.sample_size
    size = images.shape[2:] if size is None else (size, size) if isinstance(size, int) else tuple(size)
    expected = (unet_config.in_channels, *size)
    if images.shape[1:] != expected or not len(images):
        raise ValueError(
            f"`images` must have channels, height and width {expected} for this network, but have "
            f"{tuple(images.shape[1:])}, and be one or more, but are {len(images)}. Resize or convert them."
        )
    check_finite("images", images)
    lowest, highest = images.min().item(), images.max().item()
    if lowest < 0 or highest > 1:
        raise ValueError(
            f"`images` must be in [0, 1], but go from {lowest:.4g} to {highest:.4g}. Pass images / 2 + 0.5 for data in "
            "[-1, 1]."
        )
    return images.to(torch.promote_types(images.dtype, torch.float32)) * 2 - 1


def _pil_to_numpy(images: Sequence[Any], channels: int) -> np.ndarray:
    """(B, H, W, C) in [0, 1], float32."""
    mode = PIL_MODES.get(channels)
    for index, image in enumerate(images):
        if not isinstance(image, Image.Image) or image.mode != mode:
            kind = f"one of mode {image.mode!r}" if isinstance(image, Image.Image) else type(image).__name__
            raise ValueError(
                f"`images` in a list must be PIL images of mode {mode!r} for a network of {channels} channels, but "
                f"index {index} is {kind}. Change it by `image.convert({mode!r})`, or pass one array or tensor for all."
            )
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"`images` must be one or more of one size, but have the sizes {sorted(sizes)}. Resize them.")
    pixels = np.stack([np.asarray(image, dtype=np.float32) for image in images]) / 255
    return pixels if pixels.ndim == 4 else pixels[..., None]
