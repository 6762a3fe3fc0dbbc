"""Errors that name their cause end a script in one line, which is the last also under a launcher."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusers_pfgm import PoissonKernel
from diffusers_pfgm.training.run import script_errors
from diffusers_pfgm.training.run.script_errors import ScriptParser, run_script

SCRIPT = """
from diffusers_pfgm import PoissonKernel
from diffusers_pfgm.training.run.script_errors import run_script

run_script(lambda: PoissonKernel(-1.0))
"""


def in_lines() -> None:
    raise ValueError("two\n  lines")


@pytest.fixture
def as_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [__file__])


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: PoissonKernel(-1.0), "`aug_dim` must be a number > 0, or None for infinity, but is -1.0."),
        (in_lines, "two lines"),
        (lambda: Path("nowhere.json").read_text(), "[Errno 2] No such file or directory: 'nowhere.json'"),
    ],
)
def test_an_error_with_a_cause_is_one_line(
    as_script: None, call: Callable[[], object], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        run_script(call)
    assert capsys.readouterr().err.startswith(f"test_script_errors.py: error: {line}")


@pytest.mark.parametrize("call", [lambda: int("x"), lambda: [].pop(), lambda: {}["name"]])
def test_a_bug_keeps_its_traceback(as_script: None, call: Callable[[], object]) -> None:
    with pytest.raises((ValueError, IndexError, KeyError)):
        run_script(call)


def test_options_have_their_error_in_the_same_way(as_script: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        ScriptParser().parse_args(["--unknown"])
    assert capsys.readouterr().err.splitlines()[-1] == (
        "test_script_errors.py: error: unrecognized arguments: --unknown"
    )


def test_nothing_happens_to_a_script_that_succeeds() -> None:
    run_script(lambda: None)
    with pytest.raises(SystemExit, match="3"):
        run_script(lambda: sys.exit(3))
    assert script_errors.launcher_process() is None


def test_the_line_is_the_last_under_accelerate_launch(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--cpu"]
    done = subprocess.run([*launch, str(tmp_path / "work.py")], capture_output=True, text=True, timeout=300)
    lines = done.stderr.rstrip().splitlines()
    assert done.returncode != 0 and lines[-1].startswith("work.py: error: `aug_dim` must be a number > 0")
    launchers = next(i for i, line in enumerate(lines) if line.startswith("Traceback"))
    assert "CalledProcessError" in "".join(lines[launchers:])
    # It stands before the launcher's traceback too, in case that is never reached, and has none of its own.
    assert lines[-1] in lines[:launchers] and "script_errors" not in done.stderr
