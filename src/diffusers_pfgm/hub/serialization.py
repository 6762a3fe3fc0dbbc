"""Folders of saved pipelines: each file whole at any moment, and enough in them for plain diffusers to load them.

diffusers loads a pipeline class of another package only if the folder holds its code and the caller trusts it
(`trust_remote_code=True`). So the index names the class as ["pipeline", "PFGMPipeline"], and `pipeline.py` beside it
imports it. `PFGMPipeline.from_pretrained` reads its own name instead and asks for no trust.

A component of another package, such as the scheduler, it downloads from the Hub only if the component's folder holds
code too, or if the package is one of its own pipelines. The first serves plain diffusers, which has not imported this
package yet, and the second, by `register`, everybody who has, without trust.
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

# diffusers' names of weights: whole ones, shards and their index, each of a variant or of none.
WEIGHTS = re.compile(r"diffusion_pytorch_model(?:-\d+-of-\d+)?(?:\.(.+?))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
WEIGHTS_INDEX = re.compile(r"diffusion_pytorch_model\.(?:safetensors|bin)\.index(?:\.(.+))?\.json")
PACKAGE = "diffusers_pfgm"  # as saved folders name it, wherever this module is
INDEX, CODE = "model_index.json", "pipeline.py"
CLASS_IN_FOLDER = ["pipeline", "PFGMPipeline"]
PARTIAL = ".saving"
PURPOSE = "# Lets DiffusionPipeline.from_pretrained(..., trust_remote_code=True) load this folder."


@contextlib.contextmanager
def atomic_directory(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A hidden folder whose files take their places in `folder` one by one when all of them are written.

    Whenever a process is killed, each file in `folder` is an old one or a new one, and whole. Files of an earlier save
    that would be loaded in the place of the new ones are removed at the end, see `outdated`.

    Raises:
        OSError: if they cannot be written, a full disk for instance; then `folder` is as it was.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"`save_directory` {str(folder)!r} is a file. Name a folder.")
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        files = sorted((path for path in partial.rglob("*") if path.is_file()), key=lambda path: path.name == INDEX)
        for path in files:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    except Exception as error:  # torch, safetensors and PIL each have their own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"{folder} could not be saved to, and is as it was: {error}") from error
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
    """Files of an earlier save that diffusers would load in the place of what was written, in the order to remove them.

    These are weights of the same component and variant in another format or other shards. An index goes before its
    shards, so that no index ever names shards that are gone.

    Args:
        present: paths in the saved folder, with "/".
        written: those that the save has just written.
    """
    written = set(written)
    renewed = {_weights_of(name) for name in written} - {None}
    found = [name for name in present if name not in written and _weights_of(name) in renewed]
    return sorted(found, key=lambda name: not name.endswith(".json"))


def _weights_of(name: str) -> tuple[str, str | None] | None:
    """The component and the variant of a weight file; None for any other file."""
    component, _, file = name.rpartition("/")
    match = WEIGHTS.fullmatch(file) or WEIGHTS_INDEX.fullmatch(file)
    return None if match is None else (component, match[1])


def register() -> None:
    """Make diffusers know this package by name, as it knows its own pipelines."""
    diffusers.pipelines.diffusers_pfgm = sys.modules[PACKAGE]


def add_loader_code(folder: Path) -> None:
    """Make plain diffusers find the pipeline's class by the folder alone."""
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"_class_name": CLASS_IN_FOLDER}, indent=2) + "\n")
    (folder / CODE).write_text(f"{PURPOSE}\nfrom diffusers_pfgm import PFGMPipeline  # noqa: F401\n")
    for name, value in index.items():
        if isinstance(value, list) and value[0] == PACKAGE:
            add_component_code(folder / name, value[1], "SchedulerMixin" if name == "scheduler" else "ModelMixin")
    for path in (folder / INDEX, *folder.glob("*/*config.json")):
        _forget_origin(path)


def _forget_origin(path: Path) -> None:
    """Remove from a configuration the place on this machine where diffusers has loaded it; a Hub id stays."""
    config = json.loads(path.read_text())
    origin = config.get("_name_or_path")
    if origin is not None and (strip_location(origin) != origin or Path(origin).exists()):
        del config["_name_or_path"]
        path.write_text(json.dumps(config, indent=2) + "\n")


def add_component_code(folder: str | os.PathLike[str], class_name: str, mixin: str) -> None:
    """Make diffusers find a component of this package by the folder of any pipeline that it is saved in.

    Args:
        folder: of the component.
        class_name: a public name of this package.
        mixin: the class of diffusers, public here too, by which it knows how to load the component.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    code = f"{PURPOSE}\nfrom {PACKAGE} import {mixin}, {class_name}  # noqa: F401\n"
    (folder / f"{PACKAGE}.py").write_text(code)


def restore_class_name(index: dict[str, Any]) -> dict[str, Any]:
    """An index in which the pipeline goes by its name alone."""
    if list(index.get("_class_name", [])) == CLASS_IN_FOLDER:
        return index | {"_class_name": CLASS_IN_FOLDER[-1]}
    return index
