"""What two runs must share for one to go on from the other's checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

# Options that leave the mathematics of a step alone, and those whose effect is compared instead of their text: the
# images of a step instead of its batch size, the images themselves instead of their path.
FREE = {
    "dataset_name",
    "dataset_config_name",
    "train_data_dir",
    "cache_dir",
    "image_column",
    "label_column",
    "dataloader_num_workers",
    "broken_images",
    "model_config_name_or_path",
    "gradient_checkpointing",
    "train_batch_size",
    "gradient_accumulation_steps",
    "output_dir",
    "overwrite_output_dir",
    "seed",
    "num_epochs",
    "max_train_steps",
    "use_ema",
    "logger",
    "logging_dir",
    "logging_steps",
    "save_images_epochs",
    "eval_batch_size",
    "num_inference_steps",
    "save_model_epochs",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "validation_epochs",
    "keep_best",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "license",
    "mixed_precision",
}


def run_settings(options: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """The options that matter, and facts such as `images_per_step`, as JSON holds them."""
    found = {name: value for name, value in options.items() if name not in FREE} | facts
    strict = {name: "inf" if isinstance(value, float) and math.isinf(value) else value for name, value in found.items()}
    settings: dict[str, Any] = json.loads(json.dumps(strict, allow_nan=False))
    return settings


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Each key that differs, with its saved and its current value."""
    return [
        f"{name} was {saved.get(name)!r} and is {current.get(name)!r}"
        for name in sorted({*saved, *current})
        if saved.get(name) != current.get(name)
    ]


def check_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to go on from another configuration.

    Raises:
        ValueError: with each key that differs, its saved and its current value.
    """
    differing = differences(saved, current)
    if "images_per_step" in saved and saved["images_per_step"] != current["images_per_step"]:
        differing.append(
            "images_per_step is --train_batch_size times --gradient_accumulation_steps times the number of processes, "
            f"so only numbers of processes that divide {saved['images_per_step']} can go on"
        )
    if differing:
        raise ValueError(
            f"`--resume_from_checkpoint`: the checkpoint is of another configuration: {'; '.join(differing)}. Pass the "
            "saved values, or start anew in another `--output_dir`."
        )
