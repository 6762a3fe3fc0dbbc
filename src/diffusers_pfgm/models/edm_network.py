"""Base class of the networks of EDM: the call, class labels, encoder and decoder, and gradient checkpointing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn
from torch.nn import functional

from .edm_blocks import EDMBlock
from .noise_embedding import FLOAT32_BUFFERS


class EDMNetwork(ModelMixin, ConfigMixin):
    """Base class of `SongUNet` and `DhariwalUNet`."""

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules = FLOAT32_BUFFERS
    _no_split_modules = ["EDMBlock"]
    config: Any
    map_label: nn.Linear | None
    map_augment: nn.Linear | None
    gradient_checkpointing = False

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Return the network's output F.

        Args:
            sample: c_in x, (B, C, H, W).
            timestep: c_noise = ln(σ)/4, a number, () or (B,).
            class_labels: class numbers (B,) for a network with `num_class_embeds`; None for no class.
            return_dict: whether to return a `UNet2DOutput` instead of a tuple.

        Returns:
            (B, C', H, W), with C' = `out_channels`.

        Raises:
            ValueError: if there are `class_labels` for a network without classes, or they are not integers.
        """
        timesteps = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))
        classes = None
        if self.config.num_class_embeds is not None:
            classes = torch.zeros(len(sample), self.config.num_class_embeds, dtype=sample.dtype, device=sample.device)
            if class_labels is not None:
                if class_labels.is_floating_point():
                    raise ValueError(
                        f"`class_labels` must be integers, but are {class_labels.dtype}. Pass class numbers."
                    )
                classes = functional.one_hot(class_labels.long(), self.config.num_class_embeds).to(sample.dtype)
        elif class_labels is not None:
            raise ValueError("`class_labels` were passed, but the network has no classes (`num_class_embeds` is None).")
        output = self._output(sample, self._embedding(timesteps, sample.dtype, classes))
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def _embedding(self, timesteps: torch.Tensor, dtype: torch.dtype, classes: torch.Tensor | None) -> torch.Tensor:
        raise NotImplementedError

    def _output(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _add_blocks(
        self,
        block: Callable[..., EDMBlock],
        channels: int,
        attends_once: bool,
        residual: Callable[..., nn.Module] | None,
    ) -> None:
        """Add the blocks of the encoder, `enc`, and of the decoder, `dec`.

        Args:
            block: makes a block, called as `block(in_channels, out_channels, resample, attends)`.
            channels: the number of channels after the first convolution.
            attends_once: whether in each level of the decoder only the last block is followed by self-attention.
            residual: makes the layer that adds the downsampled image to each level of NCSN++'s encoder, called as
                `residual(in_channels, out_channels)`; None for a network without it.
        """
        config = self.config
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        skips = []
        auxiliary, size = config.in_channels, config.sample_size
        for level, out in enumerate(config.block_out_channels):
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = nn.Conv2d(config.in_channels, channels, 3, padding=1)
            else:
                size //= 2
                self.enc[f"{size}x{size}_down"] = block(channels, channels, "down")
                if residual is not None:
                    self.enc[f"{size}x{size}_aux_residual"] = residual(auxiliary, channels)
                    auxiliary = channels
            skips.append(channels)
            for index in range(config.layers_per_block):
                self.enc[f"{size}x{size}_block{index}"] = block(channels, out, None, size in config.attn_resolutions)
                channels = out
                skips.append(channels)
        for level, out in reversed([*enumerate(config.block_out_channels)]):
            if level == len(config.block_out_channels) - 1:
                self.dec[f"{size}x{size}_in0"] = block(channels, channels, None, True)
                self.dec[f"{size}x{size}_in1"] = block(channels, channels)
            else:
                size *= 2
                self.dec[f"{size}x{size}_up"] = block(channels, channels, "up")
            for index in range(config.layers_per_block + 1):
                attends = size in config.attn_resolutions and (index == config.layers_per_block or not attends_once)
                self.dec[f"{size}x{size}_block{index}"] = block(channels + skips.pop(), out, None, attends)
                channels = out

    def _run_blocks(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Run encoder and decoder, from (B, C, H, W) to (B, C', H, W)."""
        skips: list[torch.Tensor] = []
        auxiliary = x
        for name, block in self.enc.items():
            if name.endswith("aux_residual"):
                x = auxiliary = skips[-1] = (x + block(auxiliary)) * math.sqrt(0.5)
                continue
            x = self._block(block, x, embedding) if isinstance(block, EDMBlock) else block(x)
            skips.append(x)
        for block in self.dec.values():
            if isinstance(block, EDMBlock):
                if x.shape[1] != block.in_channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = self._block(block, x, embedding)
        return x

    def _block(self, block: nn.Module, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, x, embedding)
        return block(x, embedding)
