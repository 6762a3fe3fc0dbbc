"""The files that a run writes into its output folder, as opposed to files of the user in the same folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ...hub.model_card import CARD, is_generated_card
from ...hub.serialization import CODE, INDEX, SAVING
from ...hub.written_files import LIST
from ...utils.atomic_file import partial_path
from .checkpoint_contents import CHECKPOINT_PREFIX, checkpoint_step, read_settings
from .checkpoints import PARTIAL, list_checkpoints
from .folders import SET_ASIDE
from .records import read_records
from .settings import check_settings

LOCK = ".lock"
LOG = "log.jsonl"
LOG_BEGINS = b'{"event": '
TRACKER = "train_pfgm"  # the project's name in the trackers, which write into a subfolder of this name
BEST = "best"
BEST_NOTE = "validation.json"  # the file in the folder `best` with the step and the distance of the best model
PIPELINE = (INDEX, CODE, "unet", "scheduler")
CURVES = ("training.png", "sigma-density.png")
SAMPLES = re.compile(r"step-\d+\.(?:png|partial)|\.step-\d+\.png\.partial")  # version 0.1.0 used the second name


def files_of_a_run(folder: Path, logging_dir: str) -> list[Path]:
    """Return everything in a folder that an earlier run has written, or that has the name of such a file.

    Args:
        folder: The value of `--output_dir`.
        logging_dir: The trackers' folder, relative to `folder`.
    """
    paths = [*list_checkpoints(folder), *(folder / name for name in (LOG, LIST, *PIPELINE, *CURVES)), *_samples(folder)]
    logs = folder / logging_dir / TRACKER
    if folder in logs.parents:
        paths.append(logs)
    if any((folder / BEST / name).exists() for name in (BEST_NOTE, INDEX)):
        paths.append(folder / BEST)
    if is_generated_card(folder / CARD):
        paths.append(folder / CARD)
    return [path for path in paths if path.exists() or path.is_symlink()]


def files_after(folder: Path, step: int) -> list[Path]:
    """Return what a run abandons if it resumes from a checkpoint that is not the newest one.

    These are the newer checkpoints, the samples of later steps, and the best model if it is of a later step. Without a
    newer checkpoint the list is empty, since the resumed run repeats the steps of later samples and writes them again.

    Args:
        folder: The value of `--output_dir`.
        step: The step of the checkpoint that the run resumes from.
    """
    checkpoints = [path for path in list_checkpoints(folder) if checkpoint_step(path) > step]
    if not checkpoints:
        return []
    samples = [path for path in _samples(folder) if int(path.name.split("-")[1].split(".")[0]) > step]
    best = [folder / BEST] if _step_of_best(folder / BEST / BEST_NOTE) > step else []
    return [*checkpoints, *samples, *best]


def is_of_the_run(checkpoint: Path, folder: Path) -> bool:
    """Whether a checkpoint is of the latest run in a folder: it is in it, or is set aside and has the same settings.

    Args:
        checkpoint: The folder of the checkpoint.
        folder: The value of `--output_dir`.
    """
    starts = read_records(folder / LOG, "start") if _is_log(folder / LOG) else []
    settings = starts[-1].get("settings") if starts else None
    if settings is None or not checkpoint.parent.name.startswith(SET_ASIDE):
        return True
    try:
        check_settings(read_settings(checkpoint), settings)
    except ValueError:
        return False
    return True


def is_run_without_checkpoint(folder: Path, logging_dir: str) -> bool:
    """Whether a folder is empty, or holds a run that stopped before its first checkpoint and before its end."""
    if list_checkpoints(folder):
        return False
    stopped = _is_log(folder / LOG) and not read_records(folder / LOG, "end")
    return stopped or has_saved_nothing(folder, logging_dir)


def has_saved_nothing(folder: Path, logging_dir: str) -> bool:
    """Whether a folder holds at most the records of a run: no model, no checkpoint and no other file."""
    samples = _samples(folder)
    logs = folder / logging_dir / TRACKER

    def is_record(path: Path) -> bool:
        first = path.relative_to(folder).parts[0]
        hidden = first in (LOCK, SAVING, LIST, partial_path(Path(LIST)).name, f"{LIST}{PARTIAL}") or (
            first.startswith(f".{CHECKPOINT_PREFIX}") and first.endswith(PARTIAL)
        )
        return hidden or first.startswith(SET_ASIDE) or _is_log(path) or path in samples or logs in path.parents

    return all(is_record(path) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _is_log(path: Path) -> bool:
    """Whether a file is the log of a run. Its first line may be incomplete if the run was killed."""
    if path.name != LOG or not path.is_file():
        return False
    with path.open("rb") as file:
        return LOG_BEGINS.startswith(file.read(len(LOG_BEGINS)))


def _step_of_best(note: Path) -> int:
    """Step of the best model; 0 if there is none or its note cannot be read, which `BestModel` reports."""
    try:
        return int(json.loads(note.read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _samples(folder: Path) -> list[Path]:
    """Sample grids of a run, including the partial file of a run that was killed while writing one."""
    return sorted(path for path in (folder / "samples").glob("*step-*") if SAMPLES.fullmatch(path.name))
