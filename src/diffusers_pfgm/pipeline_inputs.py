"""What a pipeline checks before it runs: the scheduler, the network's channels, the batch's shape, given pictures."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from .foreign_configs import adds_noise, refusal
from .named_schedulers import class_of_name, options_of
from .physics.charges import check_finite
from .pipeline_outputs import OUTPUT_TYPES
from .scheduling_poisson_flow import PoissonFlowScheduler

STOCHASTIC = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "SASolverScheduler",
)
PIL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by channels


def flow_of(scheduler: Any) -> PoissonFlowScheduler:
    """The Poisson flow that a scheduler follows: itself, or the one that a scheduler of diffusers stands for.

    Raises:
        ValueError: for a scheduler that follows none, with the reason.
    """
    if isinstance(scheduler, PoissonFlowScheduler):
        return scheduler
    config, name = scheduler.config, type(scheduler).__name__
    # Made from ours, it also keeps what it does not read itself, and so tells what the network is.
    own = {key: value for key, value in config.items() if key in inspect.signature(type(scheduler).__init__).parameters}
    step = list(inspect.signature(scheduler.step).parameters.values())
    reason = refusal(own)
    if config.get("prediction_type") == "field":
        reason = "unable to follow prediction_type 'field'. Use PoissonFlowScheduler, or another network"
    elif "Inverse" in name or any(parameter.default is parameter.empty for parameter in step[3:]):
        reason = "made for another task than to draw images from noise alone. Use PoissonFlowScheduler"
    elif reason is None:
        for key, meaning in (("beta_schedule", "a beta schedule"), ("sigma_data", "EDM's preconditioning")):
            if config.get(key) is not None and key not in own:
                reason = f"without `{key}`, but the network has {meaning}. Use one of its kind"
    aug_dim = config.get("aug_dim")
    if reason is None and aug_dim is not None and name in STOCHASTIC:
        reason = f"a source of Gaussian noise, which is not the kernel of `aug_dim` = {aug_dim}. Use an ODE solver"
    if reason is not None:
        raise ValueError(f"`scheduler` ({name}) is {reason}.")
    if class_of_name(name) is type(scheduler):
        config = {**config, "_class_name": name}
    flow: PoissonFlowScheduler = PoissonFlowScheduler.from_config(config, sigma_knots=None)
    return flow


def check_same_field(config: Any, flow: PoissonFlowScheduler) -> None:
    """Raises ValueError where a `ChargeField` says otherwise than the scheduler; a network does not say."""
    for name in ("aug_dim", "prediction_type", "gamma", "sigma_data", "beta_schedule"):
        if hasattr(config, name) and getattr(config, name) != flow.config[name]:
            raise ValueError(
                f"`{name}` is {getattr(config, name)} of the field, but {flow.config[name]} of the scheduler. Make "
                "both the same."
            )


def check_density(model: Any, scheduler: Any) -> None:
    """Raises ValueError for a guided model, or a scheduler that adds noise: neither has a density to tell."""
    why = "Ask for the likelihood of the model itself, with a PoissonFlowScheduler or another ODE solver."
    if getattr(model, "is_guided", False):
        raise ValueError(
            f"`model` ({type(model).__name__}) is guided: its field is made of several and belongs to no distribution "
            f"of data, so a likelihood of it would mean nothing. {why} Set `guidance_scale=1`, or leave out the "
            "measurement."
        )
    name = type(scheduler).__name__
    if isinstance(scheduler, PoissonFlowScheduler):
        return
    if name in STOCHASTIC or adds_noise(options_of(scheduler.config, type(scheduler))):
        raise ValueError(
            f"`scheduler` ({name}) adds noise at every step, so no point has one way up, and the change of variables "
            f"does not hold. {why}"
        )


def checked_shape(
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
    form, channels = flow.parameterization, config.in_channels
    check_same_field(config, flow)
    if not form.allows_channels(config.out_channels, channels):
        raise ValueError(
            f"`unet` returns {config.out_channels} channels for {channels}, but prediction_type "
            f"{form.prediction_type!r} of the scheduler needs {form.output_channels(channels)}. "
            "Change `out_channels` of the network, or `prediction_type` of the scheduler, or its `variance_type` if "
            "the network also predicts a variance."
        )
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', but is {output_type!r}.")
    if output_type == "pil" and channels not in PIL_MODES:
        raise ValueError(f"output_type 'pil' cannot show {channels} channels. Use 'np' or 'pt'.")
    if batch_size is None:
        batch_size = 1 if latents is None else latents.shape[0]
    if int(batch_size) != batch_size or batch_size < 1:
        raise ValueError(f"`batch_size` must be a whole number >= 1, but is {batch_size}.")
    size = config.sample_size
    if size is None:
        if latents is None:
            raise ValueError(
                "`unet` has no `sample_size`, so pass `latents` of the size that you want, or set it by "
                "`pipe.unet.register_to_config(sample_size=(height, width))`."
            )
        size = latents.shape[2:]
    shape = (int(batch_size), channels, *((size, size) if isinstance(size, int) else size))
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


def pictures_to_tensor(images: Any, unet_config: Any) -> torch.Tensor:
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
