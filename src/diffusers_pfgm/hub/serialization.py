"""Folders of saved pipelines: saving without incomplete files, and the code with which plain diffusers loads them.

diffusers loads a pipeline class of another package only if the folder contains its code and the caller trusts the code
(`trust_remote_code=True`). Therefore `model_index.json` names the class as ["pipeline", "PFGMPipeline"], and the file
`pipeline.py` in the folder imports it. `PFGMPipeline.from_pretrained` replaces this name by its own, without trust.

diffusers downloads a component of another package, such as the scheduler, from the Hub only if the component's folder
contains code too, or if the package is one of diffusers' own pipelines. The code is for processes that have not
imported this package, and need `trust_remote_code=True`. `register` makes this package one of diffusers' pipelines, for
processes that have imported it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import diffusers

from .model_card import strip_location

# diffusers' file names of weights: one file, or shards and their index, each with or without a variant.
WEIGHTS = re.compile(r"diffusion_pytorch_model(?:-\d+-of-\d+)?(?:\.(.+?))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
WEIGHTS_INDEX = re.compile(r"diffusion_pytorch_model\.(?:safetensors|bin)\.index(?:\.(.+))?\.json")
PACKAGE = "diffusers_pfgm"  # the name in saved folders; `__package__` would change with this module's location
INDEX = "model_index.json"
CODE = "pipeline.py"
CLASS_IN_FOLDER = ["pipeline", "PFGMPipeline"]
SAVING = ".saving"
PURPOSE = "# Lets DiffusionPipeline.from_pretrained(..., trust_remote_code=True) load this folder."


@contextlib.contextmanager
def atomic_directory(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a hidden folder to write to, and move its files to `folder` one by one when all of them are written.

    If the process is killed at any time, each file in `folder` is a complete old or new one. Files of an earlier save
    that diffusers would load in place of the new ones are removed at the end, see `outdated`.

    Raises:
        ValueError: if `folder` is a file.
        OSError: if the files cannot be written, for instance on a full disk; then `folder` is unchanged.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"`save_directory` {str(folder)!r} is a file. Name a folder.")
    partial = folder / SAVING
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        files = sorted((path for path in partial.rglob("*") if path.is_file()), key=lambda path: path.name == INDEX)
        for path in files:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    except Exception as error:  # torch, safetensors and PIL each have another exception for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"{folder} could not be saved to, and is unchanged: {error}") from error
    for path in files:
        target = folder / path.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    written = [path.relative_to(partial).as_posix() for path in files]
    present = [path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()]
    for name in outdated(present, written):
        (folder / name).unlink()
    shutil.rmtree(partial)


def outdated(present: Iterable[str], written: Iterable[str]) -> list[str]:
    """Return the files of an earlier save that diffusers would load in place of the new ones, in order of removal.

    These are weights of the same component and variant in another format or with other shards. An index is removed
    before its shards, so that no index ever names shards that do not exist.

    Args:
        present: paths of all files in the saved folder, relative to it and with "/".
        written: paths of the new files.
    """
    written = set(written)
    renewed = {_weights_of(name) for name in written} - {None}
    old_weights = [name for name in present if name not in written and _weights_of(name) in renewed]
    return sorted(old_weights, key=lambda name: not name.endswith(".json"))


def _weights_of(name: str) -> tuple[str, str | None] | None:
    """Return the component and the variant of a weight file, or None for another file."""
    component, _, file = name.rpartition("/")
    match = WEIGHTS.fullmatch(file) or WEIGHTS_INDEX.fullmatch(file)
    return None if match is None else (component, match[1])


def register() -> None:
    """Register this package among diffusers' own pipeline packages."""
    diffusers.pipelines.diffusers_pfgm = sys.modules[PACKAGE]


def add_loader_code(folder: Path) -> None:
    """Add the code to a saved folder with which plain diffusers loads the pipeline and its components."""
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"_class_name": CLASS_IN_FOLDER}, indent=2) + "\n")
    (folder / CODE).write_text(f"{PURPOSE}\nfrom {PACKAGE} import PFGMPipeline  # noqa: F401\n")
    for name, value in index.items():
        if isinstance(value, list) and value[0] == PACKAGE:
            add_component_code(folder / name, value[1], "SchedulerMixin" if name == "scheduler" else "ModelMixin")
    for path in (folder / INDEX, *folder.glob("*/*config.json")):
        _remove_origin(path)


def _remove_origin(path: Path) -> None:
    """Remove the local path from which diffusers has loaded a configuration; a Hub id stays."""
    config = json.loads(path.read_text())
    origin = config.get("_name_or_path")
    if origin is not None and (strip_location(origin) != origin or Path(origin).exists()):
        del config["_name_or_path"]
        path.write_text(json.dumps(config, indent=2) + "\n")


def add_component_code(folder: str | os.PathLike[str], class_name: str, mixin: str) -> None:
    """Add the code to a component's folder with which diffusers imports the component's class from this package.

    Args:
        folder: the folder of the component, in that of any pipeline.
        class_name: the class, a public name of this package.
        mixin: the diffusers base class that determines how the component is loaded, a public name of this package too.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    code = f"{PURPOSE}\nfrom {PACKAGE} import {class_name}, {mixin}  # noqa: F401\n"
    (folder / f"{PACKAGE}.py").write_text(code)


def restore_class_name(index: dict[str, Any]) -> dict[str, Any]:
    """Return a `model_index.json` in which the pipeline's class has its plain name."""
    if list(index.get("_class_name", [])) == CLASS_IN_FOLDER:
        return index | {"_class_name": CLASS_IN_FOLDER[-1]}
    return index
