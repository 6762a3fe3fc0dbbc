"""What the networks of EDM have in common: how they are called, the embedding of classes, and checkpointing."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn
from torch.nn import functional


class EDMNetwork(ModelMixin, ConfigMixin):
    """Base class of `SongUNet` and `DhariwalUNet`."""

    _supports_gradient_checkpointing = True
    _no_split_modules = ["EDMBlock"]
    config: Any
    map_label: nn.Linear | None
    map_augment: nn.Linear | None
    frequencies: torch.Tensor
    gradient_checkpointing: bool

    def _check_size(self) -> None:
        levels = len(self.config.block_out_channels)
        if self.config.sample_size % 2 ** (levels - 1):
            raise ValueError(
                f"`sample_size` must be a multiple of {2 ** (levels - 1)} for {levels} levels, but is "
                f"{self.config.sample_size}. Use fewer `block_out_channels` or another size."
            )

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
        """
        timesteps = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))
        classes = None
        if self.config.num_class_embeds is not None:
            classes = torch.zeros(len(sample), self.config.num_class_embeds, dtype=sample.dtype, device=sample.device)
            if class_labels is not None:
                classes = functional.one_hot(class_labels, self.config.num_class_embeds).to(sample.dtype)
        output = self._output(sample, self._embedding(timesteps, sample.dtype, classes))
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def _embedding(self, timesteps: torch.Tensor, dtype: torch.dtype, classes: torch.Tensor | None) -> torch.Tensor:
        raise NotImplementedError

    def _output(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _block(self, block: nn.Module, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return torch.utils.checkpoint.checkpoint(block, x, embedding, use_reentrant=False)
        return block(x, embedding)
