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
DATA = "data."  # begins the names of what is found from the images
ROUNDING = 1e-5  # of statistics of the images, as machines differ in the order of their sums


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
        if not _is_same(name, saved, current)
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
    if any(difference.startswith(DATA) for difference in differing):
        differing.append(
            f"what begins with {DATA!r} is found from the images and class names, so these are other ones, or in "
            "another order"
        )
    if differing:
        raise ValueError(
            f"`--resume_from_checkpoint`: the checkpoint is of another configuration: {'; '.join(differing)}. Pass the "
            "saved values, or start anew in another `--output_dir`."
        )


def check_steps(first_step: int, max_steps: int) -> None:
    """Refuse to go on to an end that is already passed.

    Args:
        first_step: of the checkpoint.
        max_steps: of the run.

    Raises:
        ValueError: if the checkpoint was written after more steps than the run shall have.
    """
    if first_step > max_steps:
        raise ValueError(
            f"`--resume_from_checkpoint`: the checkpoint was written after step {first_step:,}, but the run ends "
            f"after step {max_steps:,} by `--max_train_steps` or `--num_epochs`. Raise that to at least "
            f"{first_step:,}, or go on from an earlier checkpoint."
        )


def _is_same(name: str, saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    if not name.startswith(DATA):
        return saved.get(name) == current.get(name)
    if name not in saved:  # by version 0.1.0
        return True
    first, second = saved[name], current.get(name)
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=ROUNDING)
    return first == second
