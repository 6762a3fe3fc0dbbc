"""Evaluate a model by its images: FID, kernel distance, inception score, precision, recall, copies, bits per dimension.

    accelerate launch training/evaluate_pfgm.py --model pfgm-cifar10 --reference cifar10-train.parquet \\
        --num_inference_steps 35 --output_dir evaluation

All metrics are written to metrics.json in the output folder. Started again with the same options, the script continues
with the images that are missing there. On any number of processes the images are the same: image i depends only on the
seed and i, and with --tolerance also on the other images of its batch, which share the steps of the adaptive solver.
"""

from diffusers_pfgm.training.run.evaluation import main
from diffusers_pfgm.training.run.evaluation_arguments import parse_args
from diffusers_pfgm.training.run.script_errors import run_script

if __name__ == "__main__":
    run_script(lambda: main(parse_args(__doc__)))
