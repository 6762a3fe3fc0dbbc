"""The README's example runs as it stands, and its files exist."""

import re
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler, StableDiffusionPipeline

from tests.schedulers.tiny_pipelines import SCALED_LINEAR, make

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


EXAMPLE, FLOW, SWAP = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_swap_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make("StableDiffusion", DDIMScheduler(**SCALED_LINEAR, clip_sample=False, steps_offset=1), tmp_path)
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", lambda name: pipe)
    names: dict[str, Any] = {}
    exec(SWAP, names)
    assert type(pipe.scheduler).__name__ == "PoissonFlowScheduler" and names["image"].size == (16, 16)


def test_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec(EXAMPLE, names)
    assert capsys.readouterr().out == "20\n" and (tmp_path / "digit.png").exists()
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 10
    exec(FLOW, names)
    assert capsys.readouterr().out.startswith("tensor(True)\ntensor([") and names["found"].log_prob.shape == (2,)


def test_files_that_it_names_exist() -> None:
    for path in re.findall(r"(?:training|pipelines_examples|tests)/[\w./-]+\.\w+", README):
        assert (ROOT / path).exists(), path


def test_commands_that_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
