"""The public surface, and what importing it costs."""

import subprocess
import sys

import diffusers_pfgm


def test_all_names_exist() -> None:
    assert sorted(diffusers_pfgm.__all__) == diffusers_pfgm.__all__
    assert all(hasattr(diffusers_pfgm, name) for name in diffusers_pfgm.__all__)


def test_core_and_physics_import_without_the_extras() -> None:
    # An import of diffusers itself may look for optional packages, so only our own files are asked.
    script = """
import sys
for name in ("datasets", "ot", "matplotlib", "torchdiffeq", "sklearn", "torchvision"):
    sys.modules[name] = None  # importing it raises
import diffusers_pfgm
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_physics_needs_torch_only() -> None:
    script = """
import sys, types, importlib.util, pathlib
package = types.ModuleType("diffusers_pfgm")  # without running its __init__, which needs diffusers
package.__path__ = [str(pathlib.Path(importlib.util.find_spec("diffusers_pfgm").origin).parent)]
sys.modules["diffusers_pfgm"] = package
sys.modules["diffusers"] = None
import diffusers_pfgm.physics
"""
    subprocess.run([sys.executable, "-c", script], check=True)
