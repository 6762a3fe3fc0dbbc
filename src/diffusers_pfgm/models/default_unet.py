"""A fresh network for a resolution."""

from __future__ import annotations

from diffusers import UNet2DModel


def make_unet(
    resolution: int,
    in_channels: int,
    out_channels: int,
    config: str | None = None,
    num_class_embeds: int | None = None,
) -> UNet2DModel:
    """A fresh network: as the configuration says, or one that suits the resolution.

    Args:
        resolution: in pixels.
        in_channels: of the data.
        out_channels: one more for prediction_type "field".
        config: file, folder or Hub id of a `UNet2DModel` configuration. By default 0.65 M parameters up to 12 pixels,
            6.5 M up to 32, and beyond the 114 M of diffusers' train_unconditional.py. Its `sample_size` may be left
            out, and is the resolution then.
        num_class_embeds: classes, and one more for images without a label; None for a network without classes.

    Raises:
        ValueError: if `config` cannot be read or is of another class, if its channels or its `sample_size` do not fit,
            or if the resolution cannot be halved as often as the network does.
    """
    if config is not None:
        return _configured(resolution, in_channels, out_channels, config, num_class_embeds)
    channels: tuple[int, ...]
    if resolution <= 12:
        channels, layers, attend = (32, 64), 1, None
    elif resolution <= 32:
        channels, layers, attend = (64, 128, 128), 2, 2
    else:
        channels, layers, attend = (128, 128, 256, 256, 512, 512), 2, 4
    factor = 2 ** (len(channels) - 1)
    if resolution % factor:
        raise ValueError(
            f"`--resolution` {resolution} is not a multiple of {factor}, as the default network needs it. "
            "Choose one that is, or describe your own network by `--model_config_name_or_path`."
        )
    levels = range(len(channels))
    return UNet2DModel(
        sample_size=resolution,
        in_channels=in_channels,
        out_channels=out_channels,
        layers_per_block=layers,
        block_out_channels=channels,
        down_block_types=tuple("AttnDownBlock2D" if level == attend else "DownBlock2D" for level in levels),
        up_block_types=tuple("AttnUpBlock2D" if level == attend else "UpBlock2D" for level in reversed(levels)),
        norm_num_groups=16,
        num_class_embeds=num_class_embeds,
    )


def _configured(
    resolution: int, in_channels: int, out_channels: int, config: str, num_class_embeds: int | None
) -> UNet2DModel:
    option = f"`--model_config_name_or_path` {config!r}"
    try:
        values = UNet2DModel.load_config(config)
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} cannot be read: {error}") from error
    kind = values.get("_class_name", UNet2DModel.__name__)
    if kind != UNet2DModel.__name__:
        raise ValueError(f"{option} is of a {kind}, but a {UNet2DModel.__name__} is trained.")
    size = values.get("sample_size")
    if size is not None and size != resolution and size != [resolution, resolution]:
        raise ValueError(
            f"{option} has the sample_size {size}, but `--resolution` is {resolution}, and the pipeline draws images "
            "of the sample_size. Pass that as `--resolution`, or take it out of the configuration."
        )
    try:
        unet = UNet2DModel.from_config(values, num_class_embeds=num_class_embeds, sample_size=resolution)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{option} does not describe a network: {error}") from error
    found = unet.config.in_channels, unet.config.out_channels
    if found != (in_channels, out_channels):
        raise ValueError(
            f"{option} has (in_channels, out_channels) = {found}, but data and objective need "
            f"{(in_channels, out_channels)}."
        )
    factor = 2 ** (len(unet.config.block_out_channels) - 1)
    if resolution % factor:
        raise ValueError(
            f"`--resolution` {resolution} is not a multiple of {factor}, but the {len(unet.config.block_out_channels)} "
            f"blocks of {option} halve it as often."
        )
    return unet
