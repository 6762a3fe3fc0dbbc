"""The parts of DDPM++ and NCSN++ (arXiv 2011.13456, appendix H): residual blocks, self-attention and image pyramids."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from .edm_blocks import ResamplingConv, group_norm

EPSILON = 1e-6  # the epsilon of group normalization
FIR_FILTER = (1, 3, 3, 1)  # the low-pass filter of StyleGAN2 (arXiv 1912.04958), in one dimension


class ResidualBlock(nn.Module):
    """A residual block of BigGAN, which may halve or double the resolution.

    Args:
        in_channels, out_channels: the number of channels before and after.
        embedding_dim: the size of the embedding of the noise level.
        resample: "down" to halve the resolution, "up" to double it, None to keep it.
        dropout: the probability of dropout before the second convolution.
        fir: whether the filter of the resampling is `FIR_FILTER`, instead of the mean of 2 × 2 pixels for "down" and
            the nearest pixel for "up". Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        resample: str | None,
        dropout: float,
        fir: bool = False,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.resampling: nn.Module = nn.Identity()
        if fir and resample is not None:
            self.resampling = ResamplingConv(in_channels, in_channels, 0, resample, FIR_FILTER)
        elif resample == "down":
            self.resampling = nn.AvgPool2d(2)
        elif resample == "up":
            self.resampling = nn.Upsample(scale_factor=2, mode="nearest")
        self.norm1 = group_norm(in_channels, EPSILON)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_dim, out_channels)
        self.norm2 = group_norm(out_channels, EPSILON)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        has_shortcut = in_channels != out_channels or resample is not None
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if has_shortcut else nn.Identity()

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, H', W') for x (B, in_channels, H, W) and the embedding (B, embedding_dim)."""
        h = self.resampling(functional.silu(self.norm1(x)))
        h = self.conv1(h) + self.embedding(functional.silu(embedding))[:, :, None, None]
        h = self.conv2(self.dropout(functional.silu(self.norm2(h))))
        return (self.shortcut(self.resampling(x)) + h) / math.sqrt(2)


class SelfAttention(nn.Module):
    """Self-attention of all pixels with one head.

    Args:
        channels: the number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, EPSILON)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, C, H, W) for x (B, C, H, W)."""
        h = self.norm(x).flatten(2).transpose(1, 2)
        h = functional.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h))
        return (x + self.out(h).transpose(1, 2).reshape(x.shape)) / math.sqrt(2)


class InputResidual(nn.Module):
    """One level of `progressive_input="residual"`: the downsampled image is added, and is the image of the next level.

    Args:
        image_channels, channels: the number of channels of the image and of the features.
    """

    def __init__(self, image_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = ResamplingConv(image_channels, channels, 3, "down", FIR_FILTER, pads_once=True)

    def forward(self, image: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next image and the features, both (B, channels, H/2, W/2).

        Args:
            image: (B, image_channels, H, W).
            h: the features after the residual block that halves the resolution, (B, channels, H/2, W/2).
        """
        h = (self.conv(image) + h) / math.sqrt(2)
        return h, h


class InputSkip(nn.Module):
    """One level of `progressive_input="input_skip"`: a linear projection of the downsampled image is added.

    Args:
        image_channels, channels: the number of channels of the image and of the features.
    """

    def __init__(self, image_channels: int, channels: int) -> None:
        super().__init__()
        self.down = ResamplingConv(image_channels, image_channels, 0, "down", FIR_FILTER)
        self.conv = nn.Conv2d(image_channels, channels, 1)

    def forward(self, image: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the downsampled image (B, image_channels, H/2, W/2) and the features, see `InputResidual.forward`."""
        image = self.down(image)
        return image, self.conv(image) + h


class OutputSkip(nn.Module):
    """One level of `progressive="output_skip"`: an image from the features, added to the upsampled smaller image.

    Args:
        channels, image_channels: the number of channels of the features and of the image.
    """

    def __init__(self, channels: int, image_channels: int) -> None:
        super().__init__()
        self.up = ResamplingConv(image_channels, image_channels, 0, "up", FIR_FILTER)
        self.norm = group_norm(channels, EPSILON)
        self.conv = nn.Conv2d(channels, image_channels, 3, padding=1)

    def forward(self, h: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor:
        """Return the image (B, image_channels, H, W).

        Args:
            h: the features (B, channels, H, W).
            image: the image of the level before, (B, image_channels, H/2, W/2); None at the lowest level.
        """
        output: torch.Tensor = self.conv(functional.silu(self.norm(h)))
        return output if image is None else self.up(image) + output
