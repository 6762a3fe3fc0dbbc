"""The whole path in minutes on a CPU: charges, field, training, digits. `make demo` runs it.

Prints what it does and where it leaves what it made.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.examples.digits import HELD_OUT, pictured_charges, split_digits, write_parquet
from diffusers_pfgm.metrics.sliced_wasserstein import sliced_wasserstein
from diffusers_pfgm.plots import plot_field_lines
from diffusers_pfgm.plots.image_grid import image_grid

ROOT = Path(__file__).resolve().parents[2]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("demo-output"), help="a model there is replaced")
    parser.add_argument("--max_train_steps", type=int, default=1500)
    args = parser.parse_args(argv)
    folder: Path = args.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = split_digits()

    real = sliced_wasserstein(train[:HELD_OUT], held_out)

    def draw(pipe: PFGMPipeline, steps: int, name: str) -> str:
        """Draw as many digits as are held out, show 64 of them, and say how far they are from real ones."""
        pipe.set_progress_bar_config(disable=True)
        started = time.perf_counter()
        output = pipe(HELD_OUT, steps, torch.Generator().manual_seed(0), output_type="pt")
        seconds = time.perf_counter() - started
        image_grid(output.images[:64], scale=8).save(folder / name)
        distance = sliced_wasserstein(output.images * 2 - 1, held_out)
        return f"{distance:.3f} (real digits {real:.3f}), {output.nfe} network calls, {seconds:.1f} s: {folder / name}"

    print("Sliced Wasserstein distances are to 360 held-out digits; 'real digits' are 360 of the training set.\n")
    print("1. Without training, from the exact field of 1,437 digits")
    free = PFGMPipeline(unet=ChargeField(train), scheduler=PoissonFlowScheduler())
    print("   distance", draw(free, 20, "training-free.png"))

    plot_field_lines(*pictured_charges(train)).savefig(folder / "field-lines.png", dpi=110)
    print(f"   field lines from the hemisphere to charges: {folder / 'field-lines.png'}\n")

    print("2. Training a network on the field, by the paper's method")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1"]
    launch.append(f"--num_cpu_threads_per_process={os.cpu_count()}")
    options = [
        str(ROOT / "training" / "train_pfgm.py"),
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
    if (folder / "digits.parquet").exists():  # made by an earlier demo, and so was the model
        options.append("--overwrite_output_dir")
    write_parquet(train, folder / "digits.parquet")
    write_parquet(held_out, folder / "held-out.parquet")
    print("   accelerate launch", " ".join(options), flush=True)
    subprocess.run([*launch, *options], check=True)

    print("\n3. Digits from the saved pipeline")
    trained = PFGMPipeline.from_pretrained(folder / "model")
    for steps in (20, 10):
        print("   distance", draw(trained, steps, f"trained-{steps}-calls.png"))
    python = os.path.relpath(sys.executable)
    print(f"""
The pipeline is in {folder / "model"}, its samples over time in {folder / "model" / "samples"}. What to try next:
   {python} pipelines_examples/generate.py --model {folder / "model"} --num_inference_steps 5
   {python} pipelines_examples/quality_against_calls.py --model {folder / "model"} --data {folder / "held-out.parquet"}
   {python} pipelines_examples/swap_schedulers.py
   {python} pipelines_examples/generate_without_training.py --images YOUR_FOLDER
   {python} -m accelerate.commands.launch training/train_pfgm.py --train_data_dir YOUR_FOLDER --resolution 32""")


if __name__ == "__main__":
    main()
