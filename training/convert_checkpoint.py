"""Convert a published checkpoint of PFGM, score_sde, PFGM++ or EDM to a pipeline.

    python training/convert_checkpoint.py --checkpoint checkpoint_5.pth --config cifar10 --output_dir pfgm-cifar10

The output folder is a pipeline: PFGMPipeline.from_pretrained("pfgm-cifar10"). Nothing in the file is executed.
"""

from diffusers_pfgm.training.run.conversion import main
from diffusers_pfgm.training.run.script_errors import run_script

if __name__ == "__main__":
    run_script(lambda: main(__doc__))
