"""One-line error messages of scripts. Only unexpected errors have a traceback.

When a script fails, `accelerate launch` and `torchrun` print their own traceback. To keep the cause visible, the
message is printed once more after the launcher has ended.
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

PACKAGE = Path(__file__).parents[2]
LAUNCHERS = ("accelerate", "torchrun", "accelerate.exe", "torchrun.exe")
LAUNCHER_MODULES = ("accelerate.commands", "torch.distributed")

# This runs in a separate process, since the script must end before its launcher does. A zombie prints nothing more.
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


class DefaultsFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the line breaks of the description, and adds the default of an option to its help.

    Nothing is added if the help names the default itself, or if the option has none.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default is not None and action.default is not False
        if not has_default or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class ScriptParser(argparse.ArgumentParser):
    """A parser that shows defaults, and whose error messages are also visible below the output of a launcher.

    Args:
        description: The description of the script in its help, which keeps its line breaks; None for none.
    """

    def __init__(self, description: str | None = None) -> None:
        super().__init__(description=description, formatter_class=DefaultsFormatter)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        report(message)
        sys.exit(2)


def run_script(main: Callable[[], object]) -> None:
    """Call `main`. An error raised by this project, or by the system for a file, ends in one line and exit code 1."""
    try:
        main()
    except Exception as error:
        if not is_explained(error):
            raise
        report(str(error))
        sys.exit(1)


def is_explained(error: Exception) -> bool:
    """Whether the message of an error explains it: an OSError, or an error from a `raise` in this project's files."""
    if isinstance(error, OSError):
        return True
    scripts = Path(sys.argv[0]).resolve().parent
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not (frames[-1].line or "").startswith("raise"):
        return False
    parents = Path(frames[-1].filename).resolve().parents
    return PACKAGE in parents or scripts in parents


def report(message: str) -> None:
    """Print a message as one line to stderr, and again after the output of a launcher."""
    line = f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}"
    sys.stderr.write(f"{line}\n")  # one write, so that lines of several processes do not mix
    sys.stderr.flush()
    launcher = launcher_process()
    if launcher is not None and os.environ.get("LOCAL_RANK", "0") == "0":
        command = [sys.executable, "-c", PRINT_AFTER, str(launcher), line]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


def launcher_process() -> int | None:
    """The process id of the launcher that started this process; None without a launcher."""
    import psutil

    parent = os.getppid()
    try:
        words = psutil.Process(parent).cmdline()
    except psutil.Error:
        return None
    launched = any(Path(word).name in LAUNCHERS or word.startswith(LAUNCHER_MODULES) for word in words)
    return parent if launched else None
