"""Python scripts in new processes that need not import torch and diffusers again, which takes ten seconds each time.

A server process imports the modules once. Each script runs in a fork of it, with its own environment, working directory
and output. What a script does at import time, such as reading HF_ENDPOINT, is done by the server.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class WarmPython:
    """The client of a server process.

    Args:
        server: the process.
    """

    def __init__(self, server: Any) -> None:
        self.server = server

    def run(
        self, script: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a script in a fork of the server, and wait for its end.

        Args:
            script: Python code.
            env: the environment variables to add.
            cwd: the working directory.
        """
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / name) for name in ("stdout", "stderr")]
            request = {"script": script, "env": dict(env or {}), "cwd": None if cwd is None else str(cwd)}
            print(json.dumps(request | {"paths": paths}), file=self.server.stdin, flush=True)
            code = int(self.server.stdout.readline())
            stdout, stderr = (Path(path).read_text() for path in paths)
        return subprocess.CompletedProcess(script, code, stdout, stderr)


@contextmanager
def warm_python(*modules: str, env: Mapping[str, str] | None = None) -> Iterator[WarmPython]:
    """A server process that has imported these modules, until the block ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, __file__, *modules], text=True, env=env or os.environ, **pipes)
    try:
        yield WarmPython(process)
    finally:
        process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
        process.wait()


def run_child(script: str, env: dict[str, str], cwd: str | None, paths: list[str]) -> None:
    """Run a script in this process, which is a fork, and end it."""
    for number, path in enumerate(paths, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(env)
    if cwd is not None:
        os.chdir(cwd)
    code: Any = 0
    try:
        exec(script, {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    for module in sys.argv[1:]:
        __import__(module)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run_child(**json.loads(line))
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)
