"""Errors of a script in one line: a traceback only for what the project did not raise itself.

`accelerate launch` and `torchrun` end with a traceback of their own when a script fails. So that the cause is not
buried under it, the line is printed once more after the launcher has ended.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

PACKAGE = Path(__file__).parents[1]
LAUNCHERS = ("accelerate", "torchrun", "accelerate.exe", "torchrun.exe")
LAUNCHER_MODULES = ("accelerate.commands", "torch.distributed")

# A process of its own, for this one must end before its launcher does. A zombie has printed all that it will.
PRINT_AFTER = """
import sys, time, psutil
pid, line, deadline = int(sys.argv[1]), sys.argv[2], time.monotonic() + 60
try:
    launcher = psutil.Process(pid)
    while launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
except psutil.NoSuchProcess:
    pass
print(line, file=sys.stderr, flush=True)
"""


class ScriptParser(argparse.ArgumentParser):
    """A parser whose errors stay in sight under a launcher too."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        report(message)
        sys.exit(2)


def run_script(main: Callable[[], object]) -> None:
    """Call `main`. An error that the project raised itself, or the system for a file, ends in one line and code 1."""
    try:
        main()
    except Exception as error:
        if not is_explained(error):
            raise
        report(str(error))
        sys.exit(1)


def is_explained(error: Exception) -> bool:
    """Whether an error names its cause: an OSError, or one that a `raise` in this project's files made."""
    if isinstance(error, OSError):
        return True
    scripts = Path(sys.argv[0]).resolve().parent
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not (frames[-1].line or "").startswith("raise"):
        return False
    parents = Path(frames[-1].filename).resolve().parents
    return PACKAGE in parents or scripts in parents


def report(message: str) -> None:
    """Print a message as one line to stderr, and again after a launcher's own last words."""
    line = f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}"
    print(line, file=sys.stderr, flush=True)
    launcher = launcher_process()
    if launcher is not None and os.environ.get("LOCAL_RANK", "0") == "0":
        command = [sys.executable, "-c", PRINT_AFTER, str(launcher), line]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


def launcher_process() -> int | None:
    """The id of the launcher that started this process; None without one."""
    import psutil

    parent = os.getppid()
    try:
        words = psutil.Process(parent).cmdline()
    except psutil.Error:
        return None
    launched = any(Path(word).name in LAUNCHERS or word.startswith(LAUNCHER_MODULES) for word in words)
    return parent if launched else None
