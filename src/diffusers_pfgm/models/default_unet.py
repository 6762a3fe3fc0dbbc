"""The `UNet2DModel` that is trained: the default for a resolution, or the one of a configuration."""

from __future__ import annotations

from diffusers import UNet2DModel


def make_unet(
    resolution: int,
    in_channels: int,
    out_channels: int,
    config: str | None = None,
    num_class_embeds: int | None = None,
) -> UNet2DModel:
    """Return a network with random weights, from a configuration or with a default size for the resolution.

    The default has 0.65 M parameters up to 12 pixels, 6.5 M up to 32 pixels, and the 114 M of diffusers'
    train_unconditional.py for larger images.

    Args:
        resolution: the height and width of the images in pixels.
        in_channels: the number of channels of the data.
        out_channels: the number of channels of the output; `in_channels` + 1 for prediction_type "field".
        config: a file, a folder or the Hub id of a `UNet2DModel` configuration; None for the default network. A missing
            `sample_size` is set to the resolution.
        num_class_embeds: the number of classes, plus one for images without a label; None for a network without
            classes.

    Raises:
        ValueError: if `config` cannot be read or describes another class, if its channels or its `sample_size` are not
            those of the data, or if the resolution cannot be halved as often as the network needs. Messages name the
            arguments and the options of train_pfgm.py for them.
    """
    if config is not None:
        return _make_configured_unet(resolution, in_channels, out_channels, config, num_class_embeds)
    channels: tuple[int, ...]
    attention_block: int | None
    if resolution <= 12:
        channels, layers, attention_block = (32, 64), 1, None
    elif resolution <= 32:
        channels, layers, attention_block = (64, 128, 128), 2, 2
    else:
        channels, layers, attention_block = (128, 128, 256, 256, 512, 512), 2, 4
    factor = 2 ** (len(channels) - 1)
    if resolution % factor:
        raise ValueError(
            f"`resolution` (option `--resolution`) must be a multiple of {factor} for the default network, but is "
            f"{resolution}. Choose a multiple, or pass the configuration of another network as `config` (option "
            "`--model_config_name_or_path`)."
        )
    blocks = range(len(channels))
    return UNet2DModel(
        sample_size=resolution,
        in_channels=in_channels,
        out_channels=out_channels,
        layers_per_block=layers,
        block_out_channels=channels,
        down_block_types=tuple("AttnDownBlock2D" if i == attention_block else "DownBlock2D" for i in blocks),
        up_block_types=tuple("AttnUpBlock2D" if i == attention_block else "UpBlock2D" for i in reversed(blocks)),
        norm_num_groups=16,
        num_class_embeds=num_class_embeds,
    )


def _make_configured_unet(
    resolution: int, in_channels: int, out_channels: int, config: str, num_class_embeds: int | None
) -> UNet2DModel:
    option = f"`config` (option `--model_config_name_or_path`) {config!r}"
    try:
        values = UNet2DModel.load_config(config)
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} cannot be read: {error}") from error
    class_name = values.get("_class_name", UNet2DModel.__name__)
    if class_name != UNet2DModel.__name__:
        raise ValueError(
            f"{option} describes a {class_name}, but must describe a {UNet2DModel.__name__}. Pass the configuration of "
            "such a network."
        )
    size = values.get("sample_size")
    if size is not None and size != resolution and size != [resolution, resolution]:
        raise ValueError(
            f"{option} has the sample_size {size}, but `resolution` (option `--resolution`) is {resolution}. The "
            "pipeline generates images of the sample_size. Pass it as the resolution, or remove it from the "
            "configuration."
        )
    try:
        unet = UNet2DModel.from_config(values, num_class_embeds=num_class_embeds, sample_size=resolution)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{option} does not describe a network: {error}") from error
    channels = (unet.config.in_channels, unet.config.out_channels)
    if channels != (in_channels, out_channels):
        raise ValueError(
            f"{option} has (in_channels, out_channels) = {channels}, but data and objective need "
            f"{(in_channels, out_channels)}. Change them in the configuration."
        )
    num_blocks = len(unet.config.block_out_channels)
    factor = 2 ** (num_blocks - 1)
    if resolution % factor:
        raise ValueError(
            f"`resolution` (option `--resolution`) must be a multiple of {factor}, since the {num_blocks} blocks of "
            f"{option} halve it {num_blocks - 1} times, but is {resolution}. Choose a multiple, or fewer blocks."
        )
    return unet
