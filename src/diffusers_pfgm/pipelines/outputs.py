"""Conversion of a pipeline's final state to images of each `output_type`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def postprocess(state: torch.Tensor, output_type: str) -> Any:
    """Convert a final state to images.

    Args:
        state: the final state (B, C, H, W) in [-1, 1], or (B, *) for "pt" and "latent".
        output_type: "pil" for a list of B PIL images, "np" for an array (B, H, W, C) and "pt" for a tensor
            (B, C, H, W), both in [0, 1]; "latent" for the state unchanged.
    """
    if output_type != "pil":
        return VaeImageProcessor(vae_scale_factor=1).postprocess(state, output_type)
    return numpy_to_pil(VaeImageProcessor(vae_scale_factor=1).postprocess(state, "np"))


def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
    """Convert an array (B, H, W, C) in [0, 1], C = 1 to 4, to PIL images.

    The function of this name in diffusers fails for images of one channel whose height or width is 1, because it
    squeezes all dimensions of size 1.
    """
    pixels = (images * 255).round().astype("uint8")
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return [Image.fromarray(image) for image in pixels]
