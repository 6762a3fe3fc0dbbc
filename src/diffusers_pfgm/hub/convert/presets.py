"""The configurations of the published networks, and those that a JSON file describes in the authors' own words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EDM_SAMPLING = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "prediction_type": "epsilon"}
CIFAR10_SAMPLING = {"sigma_min": 1e-3, "sigma_max": 40.0, "max_norm": 3000.0, "M": 291, "gamma": 5.0, "prior": "plane"}

# The networks and the sampling of PFGM (arXiv 2209.11178, appendices B and D) and of EDM (arXiv 2206.00364, table 7).
PRESETS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "cifar10": ("NCSNpp", {"layers_per_block": 4}, CIFAR10_SAMPLING),
    "cifar10_deep": ("NCSNpp", {"layers_per_block": 8}, CIFAR10_SAMPLING),
    "edm_cifar10_ddpmpp": ("SongUNet", {"augment_dim": 9}, EDM_SAMPLING),
    "edm_cifar10_ncsnpp": (
        "SongUNet",
        {
            "augment_dim": 9,
            "embedding_type": "fourier",
            "encoder_type": "residual",
            "resample_filter": [1, 3, 3, 1],
            "channel_mult_noise": 2,
        },
        EDM_SAMPLING,
    ),
    "edm_ffhq64_ddpmpp": (
        "SongUNet",
        {"sample_size": 64, "block_out_channels": [128, 256, 256, 256], "dropout": 0.05, "augment_dim": 9},
        EDM_SAMPLING,
    ),
    "edm_imagenet64_adm": ("DhariwalUNet", {"num_class_embeds": 1000}, EDM_SAMPLING),
}


def read_configuration(config: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the class name of a network, its options and the scheduler's options.

    Args:
        config: the name of a preset, or a JSON file: the configuration of PFGM's code with "model", "data" and
            "sampling", the options of a network of EDM's code with "model_type", or a configuration of one of our
            networks with "_class_name".

    Raises:
        ValueError: if it is neither, or describes another network.
    """
    if config in PRESETS:
        return PRESETS[config]
    path = Path(config)
    if not path.is_file():
        raise ValueError(f"`--config` must be a JSON file or one of {', '.join(PRESETS)}, but is {config!r}.")
    try:
        values = json.loads(path.read_text())
        if "model_type" in values:
            return _edm_configuration(values)
        if "_class_name" in values:
            return values.pop("_class_name"), values, EDM_SAMPLING
        return _pfgm_configuration(values)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"`--config` {config} does not describe a network: {error!r}.") from error


def _edm_configuration(values: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    name = values["model_type"]
    width = values["model_channels"]
    options = {
        "sample_size": values["img_resolution"],
        "in_channels": values["img_channels"],
        "out_channels": values["img_channels"],
        "block_out_channels": [width * factor for factor in values["channel_mult"]],
        "layers_per_block": values["num_blocks"],
        "attn_resolutions": values["attn_resolutions"],
        "dropout": values["dropout"],
        "model_channels": width,
        "num_class_embeds": values["label_dim"] or None,
        "augment_dim": values["augment_dim"],
    }
    if name == "SongUNet":
        if values["decoder_type"] != "standard":
            raise ValueError(f"The decoder_type {values['decoder_type']!r} is not supported, only 'standard'.")
        names = ("embedding_type", "encoder_type", "resample_filter", "channel_mult_noise")
        options |= {name: values[name] for name in names}
    elif name != "DhariwalUNet":
        raise ValueError(f"The model_type must be 'SongUNet' or 'DhariwalUNet', but is {name!r}.")
    return name, options, EDM_SAMPLING | {"sigma_data": values["sigma_data"]}


def _pfgm_configuration(values: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    model, data, training, sampling = (values[name] for name in ("model", "data", "training", "sampling"))
    needed = {
        "name": "ncsnpp",
        "fir": False,
        "resblock_type": "biggan",
        "progressive": "none",
        "progressive_input": "none",
        "embedding_type": "positional",
        "skip_rescale": True,
        "scale_by_sigma": False,
    }
    other = [f"{name} = {model[name]!r}" for name, value in needed.items() if model[name] != value]
    if training["sde"] != "poisson" or not data["centered"]:
        other.append(f"sde = {training['sde']!r} and centered = {data['centered']}")
    if other:
        raise ValueError(f"Only DDPM++ of PFGM for centered data can be converted, but it has {', '.join(other)}.")
    channels = data["num_channels"]
    options = {
        "sample_size": data["image_size"],
        "in_channels": channels,
        "out_channels": channels + 1,
        "block_out_channels": [model["nf"] * factor for factor in model["ch_mult"]],
        "layers_per_block": model["num_res_blocks"],
        "attn_resolutions": model["attn_resolutions"],
        "dropout": model["dropout"],
    }
    scheduler = {
        "sigma_min": sampling["z_min"],
        "sigma_max": sampling["z_max"],
        "max_norm": sampling["upper_norm"],
        "M": training["M"],
        "gamma": training["gamma"],
        "prior": "plane",
    }
    return "NCSNpp", options, scheduler
