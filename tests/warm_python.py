"""New Python processes that need not import torch and diffusers again, which takes ten seconds of CPU time each time.

A server process imports the modules once. Each new process is a fork of it with its own command line, environment,
working directory, output and signal handlers. Python processes that such a process starts by `subprocess` are forks
too, so that `accelerate launch` and `torchrun` run with their own code, but their workers start at once. What a module
reads from the environment at import time, such as HF_ENDPOINT, is that of the server.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

TIMEOUT = 300  # seconds, after which a process that hangs is ended


class WarmProcess:
    """A running fork of a server, with the methods of `subprocess.Popen` that tests use.

    Args:
        connection: the connection to the server.
        pid: the process's number.
        paths: the files that the process writes its output and its errors to.
    """

    def __init__(self, connection: Connection, pid: int, paths: list[Path]) -> None:
        self.connection, self.pid, self.paths = connection, pid, paths
        self.returncode: int | None = None

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for the end of the process, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: if it hangs. It is ended, and a launcher ends its processes too.
        """
        if self._wait(timeout) is None:
            self.terminate()
            if self._wait(60) is None:
                self.kill()
            raise subprocess.TimeoutExpired([str(self.pid)], timeout, *[path.read_bytes() for path in self.paths])
        assert self.returncode is not None
        return self.returncode

    def poll(self) -> int | None:
        """The exit code; None while the process is running."""
        return self._wait(0)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)  # the server keeps the number until somebody waits for the process

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def output(self) -> str:
        """What the process has printed so far, the errors last."""
        return "".join(path.read_text() for path in self.paths)

    def _wait(self, timeout: float) -> int | None:
        if self.returncode is None:
            self.connection.send((self.pid, timeout))
            self.returncode = self.connection.recv()
        return self.returncode


class WarmPython:
    """The client of a server process.

    Args:
        connection: the connection to the server.
        folder: a folder for the output of its processes.
    """

    def __init__(self, connection: Connection, folder: Path) -> None:
        self.connection, self.folder = connection, folder

    def start(self, *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> WarmProcess:
        """Start a process in a session of its own.

        Args:
            arguments: those of a `python` command: a script, `-m` with a module, or `-c` with code, and their options.
            env: the environment variables to add.
            cwd: the working directory.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        paths = [folder / name for name in ("stdout", "stderr")]
        words = [str(argument) for argument in arguments]
        self.connection.send((words, dict(env or {}), str(cwd or Path.cwd()), [str(path) for path in paths]))
        return WarmProcess(self.connection, self.connection.recv(), paths)

    def run(
        self, *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Start a process and wait for its end."""
        process = self.start(*arguments, env=env, cwd=cwd)
        code = process.wait()
        return subprocess.CompletedProcess(arguments, code, *[path.read_text() for path in process.paths])

    @contextmanager
    def with_modules(self, *modules: str) -> Iterator[WarmPython]:
        """A server process that has imported more modules, until the block ends."""
        with tempfile.TemporaryDirectory() as folder:
            process = self.start(__file__, Path(folder) / "socket", *modules)
            with _connect(Path(folder), process) as connection:
                yield WarmPython(connection, Path(folder))
            process.wait()


@contextmanager
def warm_python(*modules: str, env: Mapping[str, str] | None = None) -> Iterator[WarmPython]:
    """A server process that has imported these modules, until the block ends.

    Args:
        modules: names of modules.
        env: the environment; that of this process by default.
    """
    with tempfile.TemporaryDirectory() as folder:
        # With one thread there is no pool of threads, which would be lost in a fork.
        environment = {**(os.environ if env is None else env), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(Path(folder) / "socket"), *modules]
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        with _connect(Path(folder), process) as connection:
            yield WarmPython(connection, Path(folder))
        process.wait()


def _connect(folder: Path, process: subprocess.Popen[bytes] | WarmProcess) -> Connection:
    """Return a connection to a new server as soon as it has imported its modules."""
    while not (folder / "ready").exists():
        if process.poll() is not None:
            raise RuntimeError("The modules of a server of new processes could not be imported")
        time.sleep(0.05)
    return Client(str(folder / "socket"))


class ForkingPopen(subprocess.Popen):  # type: ignore[type-arg]
    """A `subprocess.Popen` that starts Python in a fork of this process. Other programs are started as always."""

    def _execute_child(self, *values: Any, **options: Any) -> None:
        start: Any = super()._execute_child  # type: ignore[misc]
        given = inspect.signature(start).bind(*values, **options).arguments
        words = [given["args"]] if isinstance(given["args"], str) else [os.fspath(word) for word in given["args"]]
        if words[0] != sys.executable:
            return start(*values, **options)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            files = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
            run_child(words[1:], given["env"], given["cwd"], files, bool(given["start_new_session"]))
        self._child_created = True
        names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*[given[name] for name in names])  # type: ignore[attr-defined]


def stack_without_source(context: int = 1) -> list[inspect.FrameInfo]:
    """`inspect.stack` without the lines of source, for which it searches all modules for each frame.

    torchrun calls it about twenty times, only for names of functions, which takes four seconds with these modules.
    """
    stack = []
    frame = inspect.currentframe()
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
        code = frame.f_code
        stack.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
    return stack


def run_child(
    words: list[str], env: Mapping[str, str] | None, cwd: str | None, files: list[int], new_session: bool
) -> NoReturn:
    """Run a `python` command in this process, which is a fork, as in a process that was started for it, and end it."""
    code: Any = 1
    try:
        if new_session:
            os.setsid()
        for number, file in enumerate(files):
            if file != -1:
                os.dup2(file, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        if cwd is not None:
            os.chdir(cwd)
        run_python(words[words[0] == "-u" :])
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_python(words: list[str]) -> None:
    """Run the arguments of a `python` command."""
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv, sys.modules["__main__"] = ["-c", *words[2:]], ModuleType("__main__")
        sys.path.insert(0, "")
        exec(compile(words[1], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


def serve(connection: Connection) -> None:
    """Start processes and wait for them, until the client closes the connection."""
    processes: dict[int, subprocess.Popen[bytes]] = {}
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        if len(request) == 2:
            pid, timeout = request
            try:
                connection.send(processes[pid].wait(timeout))
            except subprocess.TimeoutExpired:
                connection.send(None)
            continue
        words, env, cwd, paths = request
        with open(paths[0], "wb", 0) as stdout, open(paths[1], "wb", 0) as stderr:
            options = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr, "start_new_session": True}
            process = subprocess.Popen([sys.executable, *words], env=os.environ | env, cwd=cwd, **options)
        processes[process.pid] = process
        connection.send(process.pid)


if __name__ == "__main__":
    address = Path(sys.argv[1])
    if subprocess.Popen.__name__ != ForkingPopen.__name__:
        subprocess.Popen = ForkingPopen  # type: ignore[misc]  # before modules import the name
    inspect.stack = stack_without_source
    gc.disable()  # imports make a million objects and no garbage, and take a seventh longer with it
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()  # collections in the forks need not visit what is imported
    gc.enable()
    with Listener(str(address)) as listener:
        (address.parent / "ready").touch()
        with listener.accept() as connection:
            serve(connection)
    os._exit(0)  # which is faster than the deletion of all modules
