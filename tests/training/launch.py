"""Scripts on two processes, by torchrun."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TIMEOUT = 300  # seconds; a run that hangs is ended


def torchrun(script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script on two processes, each with one thread, and end both if they hang.

    Raises:
        subprocess.TimeoutExpired: if they hang.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            [*command, *options], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=out, stderr=err
        )
        try:
            process.wait(timeout=TIMEOUT)
        finally:
            process.terminate()  # torchrun then ends its processes, which a kill would leave
            process.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())
