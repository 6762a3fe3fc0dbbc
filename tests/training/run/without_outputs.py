"""The training script without the outputs at the end of a run, for tests of checkpoints."""

from diffusers_pfgm.training.run.arguments import parse_args
from diffusers_pfgm.training.run.loop import main
from diffusers_pfgm.training.run.outputs import Outputs
from diffusers_pfgm.training.run.script_errors import run_script

if __name__ == "__main__":
    Outputs.at_the_end = lambda self, step: None  # type: ignore[method-assign]
    run_script(lambda: main(parse_args(__doc__)))
