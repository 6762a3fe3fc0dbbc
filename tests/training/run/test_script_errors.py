"""Errors that explain themselves end a script with one line, which is also the last line under a launcher."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusers_pfgm import PoissonKernel
from diffusers_pfgm.training.run import script_errors
from diffusers_pfgm.training.run.script_errors import ScriptParser, run_script
from tests.training.launch import ACCELERATE, TORCHRUN

# It imports neither diffusers nor torch, which take the most time.
SCRIPT = f"""
import sys, types
sys.modules["diffusers_pfgm"] = types.ModuleType("diffusers_pfgm")
sys.modules["diffusers_pfgm"].__path__ = [{str(script_errors.PACKAGE)!r}]
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.utils.checks import check_whole_number

assert "torch" not in sys.modules
run_script(lambda: check_whole_number("num_steps", 0, 1))
"""


def raise_two_lines() -> None:
    raise ValueError("two\n  lines")


@pytest.fixture
def as_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [__file__])


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: PoissonKernel(-1.0), "`aug_dim` must be a number > 0, or None for infinity, but is -1.0."),
        (raise_two_lines, "two lines"),
        (lambda: Path("nowhere.json").read_text(), "[Errno 2] No such file or directory: 'nowhere.json'"),
    ],
)
def test_an_explained_error_is_printed_in_one_line(
    as_script: None, call: Callable[[], object], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        run_script(call)
    assert capsys.readouterr().err.startswith(f"test_script_errors.py: error: {line}")


@pytest.mark.parametrize("call", [lambda: int("x"), lambda: [].pop(), lambda: {}["name"]])
def test_an_unexpected_error_keeps_its_traceback(as_script: None, call: Callable[[], object]) -> None:
    with pytest.raises((ValueError, IndexError, KeyError)):
        run_script(call)


def test_errors_of_options_have_the_same_form(as_script: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        ScriptParser().parse_args(["--unknown"])
    assert capsys.readouterr().err.splitlines()[-1] == (
        "test_script_errors.py: error: unrecognized arguments: --unknown"
    )


def test_scripts_that_succeed_or_exit_are_not_changed() -> None:
    run_script(lambda: None)
    with pytest.raises(SystemExit, match="3"):
        run_script(lambda: sys.exit(3))
    assert script_errors.launcher_process() is None


def test_a_message_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without buffering (PYTHONUNBUFFERED), the lines of two processes would mix between two writes.
    writes: list[str] = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=writes.append, flush=lambda: None))
    script_errors.report("wrong")
    assert len(writes) == 1 and writes[0].endswith("error: wrong\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "error"),
    [((*ACCELERATE, "--cpu"), "CalledProcessError"), (TORCHRUN, "ChildFailedError")],
    ids=["accelerate", "torchrun"],
)
def test_the_message_is_the_last_line_under_a_launcher(tmp_path: Path, launcher: tuple[str, ...], error: str) -> None:
    (tmp_path / "work.py").write_text(SCRIPT)
    launch = [sys.executable, *launcher, str(tmp_path / "work.py")]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300)
    lines = done.stderr.rstrip().splitlines()
    assert done.returncode != 0 and lines[-1] == "work.py: error: `num_steps` must be a whole number >= 1, but is 0."
    traceback_start = next(i for i, line in enumerate(lines) if line.startswith("Traceback"))
    assert error in "".join(lines[traceback_start:])
    # The message is printed before the launcher's traceback too, and the script has no traceback.
    assert lines[-1] in lines[:traceback_start] and "script_errors" not in done.stderr
