"""A training that fits the spacing of the noise levels with few network calls and draws no figures.

python tests/training/run/cheap_outputs.py training/train_pfgm.py <its options>
"""

import runpy
import sys

from diffusers_pfgm.schedulers import fit_sigmas
from diffusers_pfgm.training.run.outputs import Outputs

if __name__ == "__main__":
    fit_sigmas.FINE_STEPS = 10
    Outputs._save_figure = lambda self, figure, name: None  # type: ignore[method-assign]
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
