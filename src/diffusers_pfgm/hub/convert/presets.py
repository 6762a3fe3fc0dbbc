"""The configurations of the published networks: presets by name, and JSON files in the format of the authors' code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .score_sde import read_score_sde

EDM_NETWORKS = ("SongUNet", "DhariwalUNet")
EDM_SAMPLING = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "prediction_type": "epsilon"}
PFGM_SAMPLING = {"sigma_min": 1e-3, "M": 291, "gamma": 5.0, "prior": "plane"}
CIFAR10_SAMPLING = PFGM_SAMPLING | {"sigma_max": 40.0, "max_norm": 3000.0}

# For each preset the class of the network, its options, and the options of the scheduler. Sources: for PFGM (arXiv
# 2209.11178) appendices B and D and the configurations that its authors published with the checkpoints, all of DDPM++;
# for EDM (arXiv 2206.00364) table 7. No paper states the number of parameters of celeba64 and bedroom256, so the tests
# compare it with the authors' code.
PRESETS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "cifar10": ("NCSNpp", {"layers_per_block": 4}, CIFAR10_SAMPLING),
    "cifar10_deep": ("NCSNpp", {"layers_per_block": 8}, CIFAR10_SAMPLING),
    "celeba64": ("NCSNpp", {"sample_size": 64}, PFGM_SAMPLING | {"sigma_max": 60.0, "max_norm": 6000.0}),
    "bedroom256": (
        "NCSNpp",
        {
            "sample_size": 256,
            "block_out_channels": [128, 128, 256, 256, 512, 512],
            "layers_per_block": 2,
            "dropout": 0.0,
        },
        PFGM_SAMPLING | {"sigma_max": 100.0, "max_norm": 30_000.0, "M": 356},
    ),
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
        config: the name of a preset, or a JSON file with one of
            - a configuration of PFGM's or score_sde's code, which has "model", "data", "training" and "sampling";
            - the options of a network of EDM's code, which have "model_type" (and "in_channels" and "out_channels" if
              they are not both "img_channels");
            - a saved configuration of our `SongUNet` or `DhariwalUNet`, which has "_class_name". Its sampling is EDM's.

    Raises:
        ValueError: if `config` is neither a preset nor a file, or the file has none of these configurations. A saved
            configuration of `NCSNpp` is not enough, since it does not say whether the network is one of PFGM or of the
            VE or VP SDE.
    """
    if config in PRESETS:
        return PRESETS[config]
    path = Path(config)
    if not path.is_file():
        raise ValueError(
            f"`config` (option `--config`) must be a JSON file or one of {', '.join(PRESETS)}, but is {config!r}."
        )
    try:
        values = json.loads(path.read_text())
        if "model_type" in values:
            return _edm_configuration(values)
        if "_class_name" not in values:
            return read_score_sde(values)
        name = values.pop("_class_name")
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`config` (option `--config`) {config!r} does not describe a network: {error!r}.") from error
    if name not in EDM_NETWORKS:
        raise ValueError(
            f"`config` (option `--config`) {config!r} is a saved configuration of {name}, but must be one of "
            f"{' or '.join(EDM_NETWORKS)}, since others do not say how the network is sampled. Pass a preset, or the "
            "authors' configuration."
        )
    return name, values, EDM_SAMPLING


def _edm_configuration(values: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    name = values["model_type"]
    width = values["model_channels"]
    options = {
        "sample_size": values["img_resolution"],
        # The numbers of channels differ if the network has condition channels, such as a CT image, as further inputs.
        "in_channels": values.get("in_channels", values["img_channels"]),
        "out_channels": values.get("out_channels", values["img_channels"]),
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
    elif name not in EDM_NETWORKS:
        raise ValueError(f"The model_type must be 'SongUNet' or 'DhariwalUNet', but is {name!r}.")
    return name, options, EDM_SAMPLING | {"sigma_data": values["sigma_data"]}
