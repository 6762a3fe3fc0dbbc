"""Tune a trained Poisson flow model so that it draws images in one or two network calls.

    accelerate launch training/tune_consistency.py --model pfgm-photos --train_data_dir photos --output_dir fast-photos

The output folder is a pipeline: PFGMPipeline.from_pretrained("fast-photos")(num_inference_steps=1). See README.md in
this folder.
"""

from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.training.run.tuning import main
from diffusers_pfgm.training.run.tuning_arguments import parse_tuning_args

if __name__ == "__main__":
    run_script(lambda: main(parse_tuning_args(__doc__)))
