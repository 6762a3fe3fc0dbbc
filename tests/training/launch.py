"""Runs scripts on two processes by torchrun."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIMEOUT = 300  # seconds, after which a run that hangs is ended


def torchrun(script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script on two processes with one thread each.

    Raises:
        subprocess.TimeoutExpired: if the processes hang. They are ended.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            [*command, *options], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=out, stderr=err
        )
        try:
            process.wait(timeout=TIMEOUT)
        finally:
            process.terminate()  # torchrun then ends its processes; after a kill they would continue
            process.wait()
        if process.returncode != 0:
            time.sleep(2)  # a failed script prints its message again after torchrun has ended
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())
