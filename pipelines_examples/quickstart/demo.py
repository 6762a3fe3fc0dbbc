"""From data to a trained pipeline in minutes on a CPU, with scikit-learn's digits. `make demo` runs this script.

    python pipelines_examples/quickstart/demo.py

The script generates digits from the exact field of the training digits, draws field lines, trains a network at
D = 1, and generates digits with it. It prints the sliced Wasserstein distances between generated and held-out digits,
the numbers of network calls, the path of each file that it writes, and commands to try next.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.examples.digits import NUM_HELD_OUT, line_and_plane_charges, split_digits, write_parquet
from diffusers_pfgm.examples.launch import launch_training
from diffusers_pfgm.metrics.sliced_wasserstein import sliced_wasserstein
from diffusers_pfgm.plots import plot_field_lines
from diffusers_pfgm.plots.image_grid import image_grid
from diffusers_pfgm.training.run.option_types import positive
from diffusers_pfgm.training.run.script_errors import run_script

TRAINING = Path(__file__).resolve().parents[2] / "training" / "train_pfgm.py"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("demo-output"), help="output folder; a model in it is replaced"
    )
    parser.add_argument("--max_train_steps", type=positive, default=1500, help="number of training steps")
    args = parser.parse_args(argv)
    folder: Path = args.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = split_digits()

    real_distance = sliced_wasserstein(train[:NUM_HELD_OUT], held_out)

    def evaluate(pipe: PFGMPipeline, steps: int, name: str) -> str:
        """Generate as many digits as are held out, save a grid of 64, and return a line of results."""
        pipe.set_progress_bar_config(disable=True)
        started = time.perf_counter()
        output = pipe(NUM_HELD_OUT, steps, torch.Generator().manual_seed(0), output_type="pt")
        seconds = time.perf_counter() - started
        image_grid(output.images[:64], scale=8).save(folder / name)
        distance = sliced_wasserstein(output.images * 2 - 1, held_out)
        return (
            f"distance {distance:.3f} (real digits {real_distance:.3f}), {output.nfe} network calls, {seconds:.1f} s: "
            f"{folder / name}"
        )

    print(f"Sliced Wasserstein distances are measured to {NUM_HELD_OUT} held-out digits.")
    print(f"'real digits' is the distance of {NUM_HELD_OUT} training digits.\n")
    print(f"1. Generation without training, from the exact field of {len(train):,} digits")
    exact_field = PFGMPipeline(unet=ChargeField(train), scheduler=PoissonFlowScheduler())
    print("  ", evaluate(exact_field, 20, "training-free.png"))

    plot_field_lines(*line_and_plane_charges(train)).savefig(folder / "field-lines.png", dpi=110)
    print(f"   field lines from the hemisphere to the charges: {folder / 'field-lines.png'}\n")

    print("2. Training of a network at D = 1, the flow of PFGM")
    options = [
        f"--dataset_name={folder / 'digits.parquet'}",
        "--resolution=8",
        f"--output_dir={folder / 'model'}",
        "--train_batch_size=128",
        f"--max_train_steps={args.max_train_steps}",
        "--learning_rate=1e-3",
        "--lr_warmup_steps=50",
        "--eval_batch_size=64",
        "--seed=0",
    ]
    if (folder / "digits.parquet").exists():  # the model in this folder is that of an earlier demo
        options.append("--overwrite_output_dir")
    write_parquet(train, folder / "digits.parquet")
    write_parquet(held_out, folder / "held-out.parquet")
    launch_training(TRAINING, options)

    print("\n3. Generation with the saved pipeline")
    trained = PFGMPipeline.from_pretrained(folder / "model")
    for steps in (20, 10):
        print("  ", evaluate(trained, steps, f"trained-{steps}-calls.png"))
    python = os.path.relpath(sys.executable)
    model = folder / "model"
    examples = "pipelines_examples"
    print(f"""
The pipeline is in {model}, and samples of the training run are in {model / "samples"}. Commands to try next:
   {python} {examples}/quickstart/generate.py --model {model} --num_inference_steps 5
   {python} {examples}/few_calls/quality_against_calls.py --model {model} --data {folder / "held-out.parquet"}
   {python} {examples}/few_calls/swap_schedulers.py
   {python} {examples}/quickstart/generate_without_training.py --images YOUR_FOLDER
   {python} -m accelerate.commands.launch training/train_pfgm.py --train_data_dir YOUR_FOLDER --resolution 32""")


if __name__ == "__main__":
    run_script(main)
