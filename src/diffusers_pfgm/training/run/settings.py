"""The settings that a run and the checkpoint it resumes from must have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from .arguments import OBJECTIVE_DEFAULTS

# Options that do not change a step, and options whose effect is compared in place of their value: the number of images
# per step in place of the batch size, a fingerprint of the images in place of their path.
IGNORED_OPTIONS = {
    "dataset_name",
    "model",
    "teacher",
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
DATA_PREFIX = "data."  # the prefix of settings that follow from the images
MODEL_CHECKSUM = "model_checksum"  # the setting with the checksum of the weights that tune_consistency.py starts from
TEACHER_CHECKSUM = "teacher_checksum"  # the setting with the checksum of the weights of its `--teacher`
STATISTICS_TOLERANCE = 1e-5  # relative tolerance of statistics, since machines differ in the order of their sums


def run_settings(options: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """Return the settings of a run in the form that they have after saving as JSON.

    Args:
        options: The options of the command line. Those that do not change a step are left out.
        **facts: Further settings, such as `images_per_step`.
    """
    values = {name: value for name, value in options.items() if name not in IGNORED_OPTIONS} | facts
    strict = {k: "inf" if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}
    settings: dict[str, Any] = json.loads(json.dumps(strict, allow_nan=False))
    return settings


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return a phrase for each setting that differs, with its saved and its current value."""
    names = [name for name in sorted({*saved, *current}) if not _is_same(name, saved, current)]
    differing = [f"{name} was {saved.get(name)!r} and is {current.get(name)!r}" for name in names]
    if any(name.startswith(DATA_PREFIX) for name in names):
        differing.append(
            f"settings that begin with {DATA_PREFIX!r} follow from the images, labels and class names, so these have "
            "changed, or their order has"
        )
    return differing


def check_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Check that a run has the settings of the checkpoint it resumes from.

    Raises:
        ValueError: if a setting differs. The message lists each with its saved and its current value.
    """
    objective = str(saved.get("objective"))
    if objective in OBJECTIVE_DEFAULTS and saved.get("preconditioning") is None:  # version 0.1.0 did not save it
        saved = {**saved, "preconditioning": "edm" if objective == "perturbation" else "none"}
    if objective == "consistency":  # older runs did not save the method, as there was only one
        saved = {"method": "training", **saved}
    if saved.get("preconditioning") == "none":  # version 0.1.0 saved its sigma_data without using it
        saved = {**saved, "sigma_data": None}
    used = OBJECTIVE_DEFAULTS.get(objective, {})
    unused = {name for names in OBJECTIVE_DEFAULTS.values() for name in names if used and name not in used}
    differing = differences(*({k: v for k, v in each.items() if k not in unused} for each in (saved, current)))
    if "images_per_step" in saved and saved["images_per_step"] != current["images_per_step"]:
        differing.append(
            "images_per_step is --train_batch_size times --gradient_accumulation_steps times the number of processes, "
            f"so the run can resume only on a number of processes that divides {saved['images_per_step']}"
        )
    for name, option in ((MODEL_CHECKSUM, "--model"), (TEACHER_CHECKSUM, "--teacher")):
        if any(difference.startswith(name) for difference in differing):
            was_set = saved.get(name) is not None
            differing.append(
                f"the weights of `{option}` are others than at the start of the run, so it cannot be resumed"
                if was_set and current.get(name) is not None
                else f"the run {'had' if was_set else 'had no'} `{option}`"
            )
    if saved.get("consistency_sigmas") != current.get("consistency_sigmas"):
        differing.append("`consistency_sigmas` are those of the first `--num_inference_steps` calls")
    if differing:
        raise ValueError(
            f"`--resume_from_checkpoint`: the checkpoint has other settings: {'; '.join(differing)}. Pass the saved "
            "values, or start a new run in another `--output_dir`."
        )


def check_steps(first_step: int, max_steps: int) -> None:
    """Check that a checkpoint was not written after the last step of the run that resumes from it.

    Args:
        first_step: The step of the checkpoint.
        max_steps: The number of steps of the run.

    Raises:
        ValueError: if `first_step` exceeds `max_steps`.
    """
    if first_step > max_steps:
        raise ValueError(
            f"`--resume_from_checkpoint`: the checkpoint was written after step {first_step:,}, but the run ends "
            f"after step {max_steps:,} by `--max_train_steps` or `--num_epochs`. Raise that to at least "
            f"{first_step:,}, or resume from an earlier checkpoint."
        )


def _is_same(name: str, saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    if not name.startswith(DATA_PREFIX):
        return saved.get(name) == current.get(name)
    if name not in saved:  # files of version 0.1.0 have no settings of the data
        return True
    first, second = saved[name], current.get(name)
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=STATISTICS_TOLERANCE)
    return first == second
