"""The public names, the packages that their import needs, and the declared versions."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import diffusers_pfgm
from tests.warm_python import WarmPython

ROOT = Path(__file__).parents[1]


def test_all_names_exist() -> None:
    assert sorted(diffusers_pfgm.__all__) == diffusers_pfgm.__all__
    assert all(hasattr(diffusers_pfgm, name) for name in diffusers_pfgm.__all__)


def test_core_and_physics_import_without_the_extras(plain_python: WarmPython) -> None:
    # diffusers checks for optional packages and works without them. Our own files must not import them either.
    script = """
import sys
assert not [name for name in sys.modules if name.startswith("diffusers_pfgm")]
extras = {"datasets", "ot", "matplotlib", "sklearn", "torchvision"}
for name in extras | {name for name in sys.modules if name.split(".")[0] in extras}:
    sys.modules[name] = None  # importing it raises
import diffusers_pfgm
"""
    done = plain_python.run("-c", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
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


def test_the_oldest_set_is_what_the_project_declares() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.10 does not have it
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [extra for name, extra in project["optional-dependencies"].items() if name not in ("dev", "docs")]
    groups = (project["dependencies"], *extras)
    declared = [name for group in groups for name in group if "diffusers-pfgm" not in name]
    oldest_versions = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups() for requirement in declared)
    lines = (ROOT / ".ci" / "constraints-oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))

    def version(text: str) -> list[int]:
        numbers = [int(number) for number in text.split(".")]
        return numbers + [0] * (3 - len(numbers))

    assert set(oldest_versions) <= set(pinned)
    assert {name: version(pinned[name]) for name in oldest_versions} == {
        name: version(text) for name, text in oldest_versions.items()
    }


def test_the_sdist_holds_what_its_tests_read() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.10 does not have it
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    held = {*targets["sdist"]["include"], "pyproject.toml"}  # which is always there
    read = set()
    for path in (ROOT / "tests").rglob("*.py"):
        depth = len(path.relative_to(ROOT).parts) - 1  # `parents[depth]` of the file is the root
        read |= set(re.findall(rf'(?:ROOT|parents\[{depth}\]) / "([^"]+)"', path.read_text()))
    assert "Makefile" in read and read <= held
