"""DDPM++ and NCSN++, the networks of PFGM and of score-based SDE models.

The architecture is that of arXiv 2011.13456 (appendix H): residual blocks of BigGAN (arXiv 1809.11096) with group
normalization, which add the embedding of the noise level after their first convolution, resample inside, and divide the
sum with their input by √2; self-attention at chosen resolutions; and a U-Net of them. NCSN++ also resamples with a
low-pass filter, embeds ln σ by Fourier features, and adds smaller images to the features. PFGM (arXiv 2209.11178,
appendix D.1) uses DDPM++ with z as the noise level and one output channel more, whose spatial mean is the z component
of the field.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn
from torch.nn import functional

from .config_checks import check_choices, check_sample_size
from .edm_blocks import group_norm
from .ncsnpp_blocks import EPSILON, InputResidual, InputSkip, OutputSkip, ResidualBlock, SelfAttention
from .noise_embedding import FLOAT32_BUFFERS, RandomFrequencies, sinusoidal_embedding

INPUT_PYRAMIDS = {"none": None, "input_skip": InputSkip, "residual": InputResidual}


class NCSNpp(ModelMixin, ConfigMixin):
    """DDPM++ and NCSN++ of score-based SDE models and PFGM, called like `UNet2DModel`.

    Args:
        sample_size: the height and width of square images in pixels, a multiple of 2^(number of levels − 1). Defaults
            to 32.
        in_channels: channels C of the images. Defaults to 3.
        out_channels: channels of the output; C + 1, the default, for prediction_type "field".
        block_out_channels: the channels of each level, from the full resolution to the lowest. Defaults to the levels
            for CIFAR-10.
        layers_per_block: the number of residual blocks in each level of the encoder. A level of the decoder has one
            more. Defaults to 4.
        attn_resolutions: the resolutions, as heights in pixels, at which residual blocks are followed by
            self-attention; in the decoder only the last block of a level is. The first block after the encoder has it
            at any resolution. Defaults to (16,).
        dropout: probability of dropout. Defaults to 0.1.
        fir: whether resampling uses the low-pass filter (1, 3, 3, 1). Defaults to False, as in DDPM++.
        progressive_input: "residual" to add the downsampled image at each level, with a convolution whose output is
            downsampled in turn; "input_skip" to add a linear projection of it; "none", the default, for neither.
        progressive: "output_skip" for an output that is the sum of upsampled images from each level; "none", the
            default, for the output of the last level.
        embedding_type: "positional", the default, for sines of the timestep, or "fourier" for random Fourier features
            of its logarithm.
        timestep_scale: the factor of the timestep before its embedding. Defaults to 1; 0.5 for a network whose noise
            levels in training were relative to images in [0, 1].
        output_scale: the factor of the output. Defaults to 1; -1 for a network that was trained to predict −ε.

    Raises:
        ValueError: if an option is unknown, `sample_size` cannot be halved as often as there are levels, or
            `progressive_input` or `progressive` is used without `fir`.

    Examples:
        >>> import torch
        >>> network = NCSNpp(sample_size=8, block_out_channels=(16, 32), layers_per_block=1, attn_resolutions=(4,))
        >>> network(torch.randn(2, 3, 8, 8), torch.tensor([0.5, 30.0])).sample.shape
        torch.Size([2, 4, 8, 8])
    """

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules = FLOAT32_BUFFERS
    _no_split_modules = ["ResidualBlock", "SelfAttention"]
    config: Any
    gradient_checkpointing = False

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
        fir: bool = False,
        progressive_input: str = "none",
        progressive: str = "none",
        embedding_type: str = "positional",
        timestep_scale: float = 1.0,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_choices(
            self.config,
            progressive_input=(*INPUT_PYRAMIDS,),
            progressive=("none", "output_skip"),
            embedding_type=("positional", "fourier"),
        )
        if not fir and (progressive_input, progressive) != ("none", "none"):
            raise ValueError(
                f"`progressive_input` = {progressive_input!r} and `progressive` = {progressive!r} resample images with "
                "the low-pass filter, but `fir` is False. Set `fir=True`."
            )
        check_sample_size(self.config)
        levels = len(block_out_channels)
        width = block_out_channels[0]
        embedding_dim = 4 * width
        self.fourier = RandomFrequencies(width) if embedding_type == "fourier" else None
        noise_dim = width if self.fourier is None else 2 * width
        self.time_embedding = nn.ModuleList(
            [nn.Linear(noise_dim, embedding_dim), nn.Linear(embedding_dim, embedding_dim)]
        )
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)

        def stage(in_channels: int, out_channels: int, attends: bool = False, resample: str | None = None) -> Any:
            block = ResidualBlock(in_channels, out_channels, embedding_dim, resample, dropout, fir)
            return nn.ModuleList([block, SelfAttention(out_channels)] if attends else [block])

        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.input_pyramid, self.output_pyramid = nn.ModuleList(), nn.ModuleList()
        skips = [width]
        channels, image_channels, size = width, in_channels, sample_size
        add_image = INPUT_PYRAMIDS[progressive_input]
        for level, out in enumerate(block_out_channels):
            for _ in range(layers_per_block):
                self.down.append(stage(channels, out, size in attn_resolutions))
                channels = out
                skips.append(channels)
            if level < levels - 1:
                self.down.append(stage(channels, channels, resample="down"))
                size //= 2
                skips.append(channels)
                if add_image is not None:
                    self.input_pyramid.append(add_image(image_channels, channels))
                    image_channels = channels if progressive_input == "residual" else in_channels
        self.middle.extend([stage(channels, channels, True), stage(channels, channels)])
        for level, out in reversed([*enumerate(block_out_channels)]):
            for index in range(layers_per_block + 1):
                attends = index == layers_per_block and size in attn_resolutions
                self.up.append(stage(channels + skips.pop(), out, attends))
                channels = out
            if progressive == "output_skip":
                self.output_pyramid.append(OutputSkip(channels, out_channels))
            if level:
                self.up.append(stage(channels, channels, resample="up"))
                size *= 2
        if progressive == "none":
            self.norm_out = group_norm(channels, EPSILON)
            self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Return the network's output.

        Args:
            sample: (B, C, H, W): x in data units, or x / √(1 + σ²) for a network of the VP SDE.
            timestep: z or σ, or the timestep of a network of the VP SDE; a number, () or (B,). It must be positive with
                Fourier features.
            class_labels: None; the network has no classes.
            return_dict: whether to return a `UNet2DOutput` instead of a tuple. Defaults to True.

        Returns:
            (B, C', H, W), with C' = `out_channels`.

        Raises:
            ValueError: if there are `class_labels`.
        """
        if class_labels is not None:
            raise ValueError("`class_labels` were passed, but the network has no classes. Leave them out.")
        timesteps = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))
        embedding = self._embedding(timesteps, sample.dtype)
        image = sample
        h = self.conv_in(sample)
        skips = [h]
        smaller_images = iter(self.input_pyramid)
        down: Any = self.down
        for stage in down:
            h = self._run(stage, h, embedding)
            if self.input_pyramid and stage[0].resample:
                image, h = next(smaller_images)(image, h)
            skips.append(h)
        for stage in self.middle:
            h = self._run(stage, h, embedding)
        output = None
        images = iter(self.output_pyramid)
        up: Any = self.up
        for stage in up:
            if stage[0].resample is None:
                h = torch.cat([h, skips.pop()], dim=1)
            elif self.output_pyramid:
                output = next(images)(h, output)
            h = self._run(stage, h, embedding)
        output = next(images)(h, output) if self.output_pyramid else self.conv_out(functional.silu(self.norm_out(h)))
        if self.config.output_scale != 1:
            output = self.config.output_scale * output
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def _embedding(self, timesteps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        timesteps = self.config.timestep_scale * timesteps
        if self.fourier is None:
            embedding = sinusoidal_embedding(timesteps, self.config.block_out_channels[0])
        else:
            embedding = self.fourier(timesteps.log())
        return self.time_embedding[1](functional.silu(self.time_embedding[0](embedding.to(dtype))))

    def _run(self, stage: Any, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Run a residual block and the self-attention after it, if there is one."""

        def run(h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
            h = stage[0](h, embedding)
            return stage[1](h) if len(stage) > 1 else h

        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(run, h, embedding)
        return run(h, embedding)
