"""The parts of EDM's networks (arXiv 2206.00364, appendix F.2): convolutions that resample, and residual blocks.

The names of the modules are those of EDM's published networks, so that their weights load without renaming.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Group normalization with at least 4 channels in each group, and at most 32 groups."""
    return nn.GroupNorm(min(channels // 4, 32), channels, eps)


class ResamplingConv(nn.Module):
    """A convolution, after the image was doubled or halved in size by a low-pass filter.

    Args:
        in_channels, out_channels: the number of channels before and after.
        kernel: the size of the convolution's kernel, 1 or 3; 0 to resample only.
        resample: "up", "down" or None.
        resample_filter: the low-pass filter in one dimension, normalized here.
        pads_once: whether "down" pads the image for the filter and the convolution at once, as in NCSN++, instead of
            padding the filtered image again. Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        resample: str | None = None,
        resample_filter: tuple[int, ...] = (1, 1),
        pads_once: bool = False,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.pads_once = pads_once
        self.padding = kernel // 2
        self.margin = (len(resample_filter) - 1) // 2
        self.weight: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None
        if kernel:
            convolution = nn.Conv2d(in_channels, out_channels, kernel)
            self.weight, self.bias = convolution.weight, convolution.bias
        taps = torch.tensor(resample_filter, dtype=torch.float32)
        self.low_pass: torch.Tensor
        self.register_buffer("low_pass", taps.outer(taps) / taps.sum().square(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, H', W') for x (B, in_channels, H, W)."""
        channels = x.shape[1]
        stride, padding = 1, self.padding
        if self.resample == "up":
            taps = self._taps(4 * self.low_pass, x)
            x = functional.conv_transpose2d(x, taps, stride=2, padding=self.margin, groups=channels)
        elif self.resample == "down" and self.pads_once:
            x = functional.conv2d(x, self._taps(self.low_pass, x), padding=self.margin + padding, groups=channels)
            stride, padding = 2, 0
        elif self.resample == "down":
            x = functional.conv2d(x, self._taps(self.low_pass, x), stride=2, padding=self.margin, groups=channels)
        return x if self.weight is None else functional.conv2d(x, self.weight, self.bias, stride, padding)

    @staticmethod
    def _taps(low_pass: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return low_pass.to(x.dtype).expand(x.shape[1], 1, *low_pass.shape)


class EDMBlock(nn.Module):
    """A residual block of EDM's networks, with self-attention after it if `heads` is not 0.

    Args:
        in_channels, out_channels: the number of channels before and after.
        embedding_dim: the size of the embedding of the noise level.
        resample: "up", "down" or None.
        heads: the number of attention heads; 0 for no attention.
        dropout: the probability of dropout.
        scales: whether the embedding scales the normalized features, as in ADM, or is only added to them.
        shortcut_conv: whether a block that resamples has a convolution in its shortcut though its channels are equal.
        sum_scale: the factor of each sum with a shortcut, 1 or √(1/2).
        eps: the epsilon of the group normalization.
        resample_filter: the low-pass filter in one dimension.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        resample: str | None = None,
        heads: int = 0,
        dropout: float = 0.0,
        scales: bool = False,
        shortcut_conv: bool = True,
        sum_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: tuple[int, ...] = (1, 1),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.scales = scales
        self.sum_scale = sum_scale
        self.norm0 = group_norm(in_channels, eps)
        self.conv0 = ResamplingConv(in_channels, out_channels, 3, resample, resample_filter)
        self.affine = nn.Linear(embedding_dim, out_channels * (2 if scales else 1))
        self.norm1 = group_norm(out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels or resample is not None:
            kernel = 1 if shortcut_conv or in_channels != out_channels else 0
            self.skip = ResamplingConv(in_channels, out_channels, kernel, resample, resample_filter)
        if heads:
            self.norm2 = group_norm(out_channels, eps)
            self.qkv = nn.Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, H', W') for x (B, in_channels, H, W) and the embedding (B, embedding_dim)."""
        h = self.conv0(functional.silu(self.norm0(x)))
        added = self.affine(embedding)[:, :, None, None]
        if self.scales:
            scale, shift = added.chunk(2, dim=1)
            h = functional.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = functional.silu(self.norm1(h + added))
        x = (self.conv1(self.dropout(h)) + self.skip(x)) * self.sum_scale
        return (x + self._attention(x)) * self.sum_scale if self.heads else x

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        # EDM's networks order the channels as head, channel of the head, and then query, key and value.
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        query, key, value = (each.transpose(2, 3) for each in qkv.unbind(3))
        attended = functional.scaled_dot_product_attention(query, key, value)
        result: torch.Tensor = self.proj(attended.transpose(2, 3).reshape(x.shape))
        return result
