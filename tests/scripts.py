"""Loads the scripts of `training` and `pipelines_examples`, which belong to no package, as modules."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


@functools.cache
def load_script(name: str) -> ModuleType:
    """Return a script of `training/` or of a folder in `pipelines_examples/` by its name without the suffix."""
    (path,) = [*ROOT.glob(f"training/{name}.py"), *ROOT.glob(f"pipelines_examples/*/{name}.py")]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
