"""Train a Poisson flow model on images, with the options of diffusers' train_unconditional.py.

    accelerate launch training/train_pfgm.py --train_data_dir photos --resolution 32 --output_dir pfgm-photos

The output folder is a pipeline: PFGMPipeline.from_pretrained("pfgm-photos"). See README.md in this folder.
"""

from diffusers_pfgm.training.run.arguments import parse_args
from diffusers_pfgm.training.run.loop import main
from diffusers_pfgm.training.run.script_errors import run_script

if __name__ == "__main__":
    run_script(lambda: main(parse_args(__doc__)))
