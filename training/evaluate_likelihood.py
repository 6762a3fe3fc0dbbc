"""Evaluate the likelihood of a data set under a model, in bits per dimension.

    python training/evaluate_likelihood.py --model pfgm-mnist --dataset_name mnist-parquet/test.parquet --max_images 500

The results of each image are one line of `--output`. Started again with the same options, the script continues with the
images that are missing there. The random numbers of an image depend only on the seed and its index.
"""

from diffusers_pfgm.training.run.likelihood_arguments import parse_args
from diffusers_pfgm.training.run.likelihood_evaluation import main
from diffusers_pfgm.training.run.script_errors import run_script

if __name__ == "__main__":
    run_script(lambda: main(parse_args(__doc__)))
