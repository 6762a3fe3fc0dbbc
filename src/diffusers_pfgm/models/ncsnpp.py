"""DDPM++, the network of the published PFGM models and of score-based SDE models.

The architecture is that of arXiv 2011.13456 (appendix H): residual blocks of BigGAN (arXiv 1809.11096) with group
normalization, which add the embedding of the noise level after their first convolution, resample inside, and divide the
sum with their input by √2; self-attention at chosen resolutions; and a U-Net of them. PFGM (arXiv 2209.11178, appendix
D.1) uses it with z as the noise level and one output channel more, whose spatial mean is the z component of the field.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn
from torch.nn import functional

EPSILON = 1e-6  # of the group normalization
MAX_PERIOD = 10_000.0  # of the embedding of the noise level


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=EPSILON)


class ResidualBlock(nn.Module):
    """A residual block of BigGAN, which may halve or double the resolution.

    Args:
        in_channels, out_channels: the number of channels before and after.
        embedding_dim: the size of the embedding of the noise level.
        resample: "down" to average over 2 × 2 pixels, "up" to repeat each pixel, None to keep the resolution.
        dropout: the probability of dropout before the second convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, embedding_dim: int, resample: str | None, dropout: float
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = _group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_dim, out_channels)
        self.norm2 = _group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        has_shortcut = in_channels != out_channels or resample is not None
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if has_shortcut else nn.Identity()

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, H', W') for x (B, in_channels, H, W) and the embedding (B, embedding_dim)."""
        h = functional.silu(self.norm1(x))
        h, x = (_resample(each, self.resample) for each in (h, x))
        h = self.conv1(h) + self.embedding(functional.silu(embedding))[:, :, None, None]
        h = self.conv2(self.dropout(functional.silu(self.norm2(h))))
        return (self.shortcut(x) + h) / math.sqrt(2)


class SelfAttention(nn.Module):
    """Self-attention of all pixels with one head.

    Args:
        channels: the number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, C, H, W) for x (B, C, H, W)."""
        h = self.norm(x).flatten(2).transpose(1, 2)
        h = functional.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h))
        return (x + self.out(h).transpose(1, 2).reshape(x.shape)) / math.sqrt(2)


class NCSNpp(ModelMixin, ConfigMixin):
    """DDPM++ of score-based SDE models and PFGM, called like `UNet2DModel`.

    Args:
        sample_size: height and width of the images, a multiple of 2^(number of levels − 1).
        in_channels: channels C of the images. Defaults to 3.
        out_channels: channels of the output; C + 1, the default, for prediction_type "field".
        block_out_channels: the channels of each level, from the full resolution down. Defaults to CIFAR-10's.
        layers_per_block: residual blocks of each level on the way down; one more on the way up. Defaults to 4.
        attn_resolutions: heights of the images that are followed by self-attention. Defaults to (16,).
        dropout: probability of dropout. Defaults to 0.1.

    Raises:
        ValueError: if `sample_size` cannot be halved as often as there are levels.

    Examples:
        >>> import torch
        >>> network = NCSNpp(sample_size=8, block_out_channels=(16, 32), layers_per_block=1, attn_resolutions=(4,))
        >>> network(torch.randn(2, 3, 8, 8), torch.tensor([0.5, 30.0])).sample.shape
        torch.Size([2, 4, 8, 8])
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResidualBlock", "SelfAttention"]
    config: Any

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 4,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 256),
        layers_per_block: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        levels = len(block_out_channels)
        if sample_size % 2 ** (levels - 1):
            raise ValueError(
                f"`sample_size` must be a multiple of {2 ** (levels - 1)} for {levels} levels, but is {sample_size}. "
                "Use fewer `block_out_channels` or another size."
            )
        self.gradient_checkpointing = False
        width = block_out_channels[0]
        embedding_dim = 4 * width
        self.time_embedding = nn.ModuleList([nn.Linear(width, embedding_dim), nn.Linear(embedding_dim, embedding_dim)])
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)

        def block(in_channels: int, out_channels: int, resample: str | None = None) -> ResidualBlock:
            return ResidualBlock(in_channels, out_channels, embedding_dim, resample, dropout)

        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips = [width]
        channels, size = width, sample_size
        for level, out in enumerate(block_out_channels):
            for _ in range(layers_per_block):
                self.down.append(self._stage(block(channels, out), size in attn_resolutions))
                channels = out
                skips.append(channels)
            if level < levels - 1:
                self.down.append(self._stage(block(channels, channels, "down"), False))
                size //= 2
                skips.append(channels)
        self.middle.extend(
            [self._stage(block(channels, channels), True), self._stage(block(channels, channels), False)]
        )
        for level, out in reversed([*enumerate(block_out_channels)]):
            for index in range(layers_per_block + 1):
                attends = index == layers_per_block and size in attn_resolutions
                self.up.append(self._stage(block(channels + skips.pop(), out), attends))
                channels = out
            if level:
                self.up.append(self._stage(block(channels, channels, "up"), False))
                size *= 2
        self.norm_out = _group_norm(channels)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    @staticmethod
    def _stage(block: ResidualBlock, attends: bool) -> nn.ModuleList:
        channels = block.conv2.out_channels
        return nn.ModuleList([block, SelfAttention(channels)] if attends else [block])

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Return the network's output.

        Args:
            sample: x, (B, C, H, W), in data units.
            timestep: z, a number, () or (B,).
            return_dict: whether to return a `UNet2DOutput` instead of a tuple.

        Returns:
            (B, C', H, W), with C' = `out_channels`.
        """
        width = self.config.block_out_channels[0]
        timesteps = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))
        embedding = sinusoidal_embedding(timesteps, width).to(sample.dtype)
        embedding = self.time_embedding[1](functional.silu(self.time_embedding[0](embedding)))
        h = self.conv_in(sample)
        skips = [h]
        for stage in self.down:
            h = self._run(stage, h, embedding)
            skips.append(h)
        for stage in self.middle:
            h = self._run(stage, h, embedding)
        up: Any = self.up
        for stage in up:
            if stage[0].resample is None:
                h = torch.cat([h, skips.pop()], dim=1)
            h = self._run(stage, h, embedding)
        output = self.conv_out(functional.silu(self.norm_out(h)))
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def _run(self, stage: Any, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Run a residual block and the attention after it, if any."""

        def run(h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
            h = stage[0](h, embedding)
            return stage[1](h) if len(stage) > 1 else h

        if self.gradient_checkpointing and torch.is_grad_enabled():
            return torch.utils.checkpoint.checkpoint(run, h, embedding, use_reentrant=False)
        return run(h, embedding)


def sinusoidal_embedding(values: torch.Tensor, dim: int) -> torch.Tensor:
    """The sines and cosines (B, dim) of values (B,), with frequencies from 1 to 1/10,000 (arXiv 1706.03762)."""
    exponents = torch.linspace(0, -math.log(MAX_PERIOD), dim // 2, device=values.device)
    angles = values[:, None] * exponents.exp()
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _resample(x: torch.Tensor, resample: str | None) -> torch.Tensor:
    if resample == "down":
        return functional.avg_pool2d(x, 2)
    if resample == "up":
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")
    return x
