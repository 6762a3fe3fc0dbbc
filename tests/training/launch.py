"""The words that tests put behind `python` to run a script by a launcher, or with cheap outputs."""

from pathlib import Path

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes=1")
CHEAP_OUTPUTS = str(Path(__file__).parent / "run" / "cheap_outputs.py")
