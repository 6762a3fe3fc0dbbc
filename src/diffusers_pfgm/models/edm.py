"""The networks of EDM (arXiv 2206.00364), which PFGM++ (arXiv 2302.04265) uses for all its published models.

`SongUNet` is DDPM++ or NCSN++ of arXiv 2011.13456 as EDM has reimplemented them, `DhariwalUNet` is ADM of arXiv
2105.05233. Both are called with EDM's inputs c_in x and c_noise = ln(σ)/4 and return EDM's output F, so a scheduler for
them has `prediction_type="epsilon"` and `sigma_data=0.5`.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional

from .config_checks import check_choices, check_sample_size
from .edm_blocks import EDMBlock, ResamplingConv, group_norm
from .edm_network import EDMNetwork
from .noise_embedding import RandomFrequencies, sinusoidal_embedding


class SongUNet(EDMNetwork):
    """DDPM++ and NCSN++ as in EDM, called like `UNet2DModel`.

    Args:
        sample_size: the height and width of square images in pixels, a multiple of 2^(number of levels − 1). Defaults
            to 32.
        in_channels, out_channels: channels of the images and of the output. Default to 3.
        block_out_channels: the channels of each level, from the full resolution to the lowest. Defaults to the levels
            for CIFAR-10.
        layers_per_block: the number of residual blocks in each level of the encoder. A level of the decoder has one
            more. Defaults to 4.
        attn_resolutions: the resolutions, as heights in pixels, at which residual blocks are followed by
            self-attention; in the decoder only the last block of a level is. The first block after the encoder has it
            at any resolution. Defaults to (16,).
        dropout: probability of dropout. Defaults to 0.13.
        model_channels: channels after the first convolution, of which `block_out_channels` are multiples. Defaults to
            128.
        embedding_type: "positional" for DDPM++, the default, or "fourier" for NCSN++.
        encoder_type: "standard" for DDPM++, the default, or "residual" for NCSN++.
        resample_filter: the low-pass filter in one dimension: (1, 1) for DDPM++, the default, (1, 3, 3, 1) for NCSN++.
        channel_mult_noise: the size of the first embedding in multiples of `model_channels`. Defaults to 1; 2 for
            NCSN++.
        num_class_embeds: the number of classes; None, the default, for none.
        augment_dim: the number of augmentation labels, which describe the augmentation of an image in training and are
            0 in sampling. Defaults to 0.

    Raises:
        ValueError: if an option is unknown, or `sample_size` cannot be halved as often as there are levels.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: tuple[int, ...] = (256, 256, 256),
        layers_per_block: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.13,
        model_channels: int = 128,
        embedding_type: str = "positional",
        encoder_type: str = "standard",
        resample_filter: tuple[int, ...] = (1, 1),
        channel_mult_noise: int = 1,
        num_class_embeds: int | None = None,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        check_sample_size(self.config)
        check_choices(self.config, embedding_type=("positional", "fourier"), encoder_type=("standard", "residual"))
        noise_dim = channel_mult_noise * model_channels
        embedding_dim = 4 * model_channels
        self.map_noise = RandomFrequencies(noise_dim // 2) if embedding_type == "fourier" else None
        self.map_label = None if num_class_embeds is None else nn.Linear(num_class_embeds, noise_dim)
        self.map_augment = nn.Linear(augment_dim, noise_dim, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise_dim, embedding_dim)
        self.map_layer1 = nn.Linear(embedding_dim, embedding_dim)

        def block(in_channels: int, out_channels: int, resample: str | None = None, attends: bool = False) -> EDMBlock:
            return EDMBlock(
                in_channels,
                out_channels,
                embedding_dim,
                resample,
                heads=int(attends),
                dropout=dropout,
                sum_scale=math.sqrt(0.5),
                eps=1e-6,
                resample_filter=tuple(resample_filter),
            )

        def residual(in_channels: int, out_channels: int) -> ResamplingConv:
            return ResamplingConv(in_channels, out_channels, 3, "down", tuple(resample_filter), pads_once=True)

        self._add_blocks(block, model_channels, True, residual if encoder_type == "residual" else None)
        channels, size = block_out_channels[0], sample_size
        self.dec[f"{size}x{size}_aux_norm"] = group_norm(channels, 1e-6)
        self.dec[f"{size}x{size}_aux_conv"] = nn.Conv2d(channels, out_channels, 3, padding=1)

    def _embedding(self, timesteps: torch.Tensor, dtype: torch.dtype, classes: torch.Tensor | None) -> torch.Tensor:
        if self.map_noise is None:
            embedding = sinusoidal_embedding(timesteps, self.map_layer0.in_features).to(dtype)
        else:
            embedding = self.map_noise(timesteps).to(dtype)
        if self.map_label is not None and classes is not None:
            embedding = embedding + self.map_label(classes * math.sqrt(self.map_label.in_features))
        embedding = functional.silu(self.map_layer0(embedding))
        return functional.silu(self.map_layer1(embedding))

    def _output(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        size = self.config.sample_size
        x = functional.silu(self.dec[f"{size}x{size}_aux_norm"](self._run_blocks(x, embedding)))
        return self.dec[f"{size}x{size}_aux_conv"](x)


class DhariwalUNet(EDMNetwork):
    """ADM as in EDM, called like `UNet2DModel`.

    Args:
        sample_size, in_channels, out_channels, block_out_channels: as in `SongUNet`, with the defaults for ImageNet-64.
        layers_per_block, dropout, num_class_embeds, augment_dim: as in `SongUNet`. Default to 3, 0.1, None and 0.
        attn_resolutions: the resolutions, as heights in pixels, at which residual blocks are followed by
            self-attention. The first block after the encoder has it at any resolution. Defaults to (32, 16, 8).
        model_channels: the size of the first embedding; in EDM's configurations `block_out_channels` are multiples of
            it. Defaults to 192.

    Raises:
        ValueError: if `sample_size` cannot be halved as often as there are levels.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: tuple[int, ...] = (192, 384, 576, 768),
        layers_per_block: int = 3,
        attn_resolutions: tuple[int, ...] = (32, 16, 8),
        dropout: float = 0.1,
        model_channels: int = 192,
        num_class_embeds: int | None = None,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        check_sample_size(self.config)
        embedding_dim = 4 * model_channels
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, embedding_dim)
        self.map_layer1 = nn.Linear(embedding_dim, embedding_dim)
        self.map_label = None if num_class_embeds is None else nn.Linear(num_class_embeds, embedding_dim, bias=False)

        def block(in_channels: int, out_channels: int, resample: str | None = None, attends: bool = False) -> EDMBlock:
            heads = max(out_channels // 64, 1) if attends else 0
            return EDMBlock(
                in_channels,
                out_channels,
                embedding_dim,
                resample,
                heads,
                dropout,
                scales=True,
                shortcut_conv=False,
            )

        channels = block_out_channels[0]
        self._add_blocks(block, channels, False, None)
        self.out_norm = group_norm(channels, 1e-5)
        self.out_conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def _embedding(self, timesteps: torch.Tensor, dtype: torch.dtype, classes: torch.Tensor | None) -> torch.Tensor:
        channels = self.map_layer0.in_features
        embedding = sinusoidal_embedding(timesteps, channels, endpoint=False, sine_first=False).to(dtype)
        embedding = self.map_layer1(functional.silu(self.map_layer0(embedding)))
        if self.map_label is not None and classes is not None:
            embedding = embedding + self.map_label(classes)
        return functional.silu(embedding)

    def _output(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return self.out_conv(functional.silu(self.out_norm(self._run_blocks(x, embedding))))
