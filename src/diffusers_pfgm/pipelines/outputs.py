"""The forms in which a pipeline returns its images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def postprocess(state: torch.Tensor, output_type: str) -> Any:
    """The images of a final state.

    Args:
        state: (B, C, H, W) in [-1, 1], or (B, *) for "pt" and "latent".
        output_type: "pil" for a list of B images, "np" for an array (B, H, W, C) and "pt" for a tensor (B, C, H, W),
            these two in [0, 1]; "latent" for the state as it is.
    """
    if output_type != "pil":
        return VaeImageProcessor(vae_scale_factor=1).postprocess(state, output_type)
    return numpy_to_pil(VaeImageProcessor(vae_scale_factor=1).postprocess(state, "np"))


def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
    """PIL images from an array (B, H, W, C) in [0, 1], C = 1 to 4.

    That of diffusers drops height and width where they are 1, and so fails for one channel.
    """
    pixels = (images * 255).round().astype("uint8")
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return [Image.fromarray(image) for image in pixels]
