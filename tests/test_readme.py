"""The README's code runs as it stands on a plain install, and the files and commands that it names exist."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler, StableDiffusionPipeline

from tests.schedulers.tiny_pipelines import SCALED_LINEAR, make

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUICKSTART, FLOW, SWAP = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
# Packages of the extras, which a plain install does not have.
EXTRAS = ("accelerate", "datasets", "matplotlib", "ot", "psutil", "sklearn", "tensorboard")


@pytest.mark.slow
def test_the_first_lines_run_on_a_plain_install(tmp_path: Path) -> None:
    hidden = f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS}))\n"  # an import of one of these raises
    command = [sys.executable, "-c", hidden + QUICKSTART + FLOW]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20\ntensor(True)\ntensor([") and (tmp_path / "sample.png").exists()


def test_the_swap_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make("StableDiffusion", DDIMScheduler(**SCALED_LINEAR, clip_sample=False, steps_offset=1), tmp_path)
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", lambda name: pipe)
    names: dict[str, Any] = {}
    exec(SWAP, names)
    assert type(pipe.scheduler).__name__ == "PoissonFlowScheduler" and names["image"].size == (16, 16)


@pytest.mark.parametrize(
    "page",
    ["README.md", "training/README.md", *(f"docs/{name}.md" for name in ("solvers", "likelihoods", "schedulers"))],
)
def test_files_that_it_names_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for path in re.findall(r"(?<![\w/])(?:docs|training|pipelines_examples|tests)/[\w./-]+\.\w+", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\((?!http)([\w./-]+)\)", text):
        assert ((ROOT / page).parent / path).exists(), path


def test_commands_that_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([\w-]+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_readme_is_short() -> None:
    assert len(README.split()) <= 900
