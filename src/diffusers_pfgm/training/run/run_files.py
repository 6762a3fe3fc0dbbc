"""The files that a run writes into its folder, apart from those of the user beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ...hub.model_card import CARD, MARK
from ...hub.serialization import PARTIAL as SAVING
from ...hub.written_files import LIST
from ...utils.atomic_file import partial_path
from .checkpoints import PARTIAL, PREFIX, list_checkpoints, newer_checkpoints
from .folders import SET_ASIDE
from .records import read_records

LOCK = ".lock"
LOG = "log.jsonl"
LOG_BEGINS = b'{"event": '
TRACKER = "train_pfgm"  # the project's name for the trackers, and so a folder in that of the logs
BEST = "best"
NOTE = "validation.json"  # in `best`
PIPELINE = ("model_index.json", "pipeline.py", "unet", "scheduler")
CURVES = ("training.png", "sigma-density.png")
SAMPLES = re.compile(r"step-\d+\.png|\.step-\d+\.png\.partial")


def files_of_a_run(folder: Path, logging_dir: str) -> list[Path]:
    """Everything in a folder that an earlier run has written, or that has a name which a run writes.

    Args:
        folder: `--output_dir`.
        logging_dir: of the trackers, in `folder`.
    """
    found = [*list_checkpoints(folder), *(folder / name for name in (LOG, LIST, *PIPELINE, *CURVES)), *_samples(folder)]
    logs = folder / logging_dir / TRACKER
    if folder in logs.parents:
        found.append(logs)
    if any((folder / BEST / name).exists() for name in (NOTE, PIPELINE[0])):
        found.append(folder / BEST)
    if (folder / CARD).is_file() and MARK in (folder / CARD).read_text(errors="replace"):
        found.append(folder / CARD)
    return [path for path in found if path.exists() or path.is_symlink()]


def files_after(folder: Path, checkpoint: Path, step: int) -> list[Path]:
    """What a run abandons that goes on from an earlier checkpoint than its newest: those, with samples and best model.

    Where there is no newer checkpoint, samples and best model belong to the steps that are made again.

    Args:
        folder: `--output_dir`.
        checkpoint: the one that the run goes on from.
        step: of the checkpoint.
    """
    checkpoints = newer_checkpoints(folder, checkpoint, step)
    if not checkpoints:
        return []
    samples = [path for path in _samples(folder) if int(path.name.split("-")[1].split(".")[0]) > step]
    best = [folder / BEST] if _step_of_best(folder / BEST / NOTE) > step else []
    return [*checkpoints, *samples, *best]


def is_run_without_checkpoint(folder: Path, logging_dir: str) -> bool:
    """Whether a folder holds nothing, or a run that was stopped before its first checkpoint and before its end."""
    if list_checkpoints(folder):
        return False
    stopped = _is_log(folder / LOG) and not read_records(folder / LOG, "end")
    return stopped or has_saved_nothing(folder, logging_dir)


def has_saved_nothing(folder: Path, logging_dir: str) -> bool:
    """Whether a folder holds nothing but the first records of a run, neither a model nor a checkpoint nor else."""
    samples, logs = _samples(folder), folder / logging_dir / TRACKER

    def is_record(path: Path) -> bool:
        first = path.relative_to(folder).parts[0]
        hidden = first in (LOCK, SAVING, LIST, partial_path(Path(LIST)).name) or (
            first.startswith(f".{PREFIX}") and first.endswith(PARTIAL)
        )
        return hidden or first.startswith(SET_ASIDE) or _is_log(path) or path in samples or logs in path.parents

    return all(is_record(path) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _is_log(path: Path) -> bool:
    """Whether a file is the log of a run; a kill may have cut off its first line."""
    if path.name != LOG or not path.is_file():
        return False
    with path.open("rb") as file:
        return LOG_BEGINS.startswith(file.read(len(LOG_BEGINS)))


def _step_of_best(note: Path) -> int:
    """Step of the best model; 0 if there is none, or if its note cannot be read, which is reported where it counts."""
    try:
        return int(json.loads(note.read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _samples(folder: Path) -> list[Path]:
    """Grids of samples, also of a run that was killed while it wrote one."""
    return sorted(path for path in (folder / "samples").glob("*step-*") if SAMPLES.fullmatch(path.name))
