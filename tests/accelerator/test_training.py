"""The training scripts on an accelerator: in every precision, resumed, tuned and evaluated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusers_pfgm import PFGMPipeline
from diffusers_pfgm.examples.digits import split_digits, write_parquet
from diffusers_pfgm.training.run.records import read_records
from tests.accelerator.device import DEVICE, needs_accelerator
from tests.networks import seeded
from tests.training.launch import ACCELERATE
from tests.training.test_train_pfgm import TINY, largest_difference

pytestmark = [needs_accelerator, pytest.mark.slow]

SCRIPTS = Path(__file__).parents[2] / "training"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_parquet(split_digits()[0][:400], folder / "digits.parquet")
    for name, channels in (("field", 2), ("epsilon", 1)):
        (folder / f"{name}.json").write_text(json.dumps(TINY | {"out_channels": channels}))
    return folder


def run(script: str, *options: str | Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *ACCELERATE, SCRIPTS / script, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def train(data: Path, output: Path, *options: str, config: str = "epsilon") -> str:
    common = [f"--dataset_name={data / 'digits.parquet'}", f"--output_dir={output}", "--resolution=8", "--seed=0"]
    common += [f"--model_config_name_or_path={data / f'{config}.json'}", "--train_batch_size=64", "--logger=none"]
    return run("train_pfgm.py", *common, "--lr_warmup_steps=5", *options)


@pytest.mark.parametrize("mixed_precision", ["no", "fp16", "bf16"])
@pytest.mark.parametrize("config", ["field", "epsilon"])
def test_training(data: Path, tmp_path: Path, config: str, mixed_precision: str) -> None:
    if DEVICE.type == "mps" and mixed_precision != "no":
        pytest.skip("accelerate supports mixed precision on MPS only in some releases of torch.")
    options = [f"--mixed_precision={mixed_precision}", "--max_train_steps=60", "--checkpointing_steps=30"]
    options += ["--objective=field"] if config == "field" else []
    output = tmp_path / "model"
    train(data, output, *options, "--logging_steps=10", config=config)
    records = read_records(output / "log.jsonl", "train")
    assert records[-1]["loss"] < records[0]["loss"]
    assert sum(record.get("skipped_steps", 0) for record in records[2:]) == 0  # after 20 steps
    pipe = PFGMPipeline.from_pretrained(output).to(DEVICE)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(4, 5, seeded(), output_type="pt").images.isfinite().all()


def test_a_resumed_run_continues(data: Path, tmp_path: Path) -> None:
    options = ["--max_train_steps=20", "--checkpointing_steps=10"]
    train(data, tmp_path / "whole", *options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-10", tmp_path / "parts" / "checkpoint-10")
    train(data, tmp_path / "parts", *options, "--resume_from_checkpoint=latest")
    # Sums in the kernels of a GPU may be in another order in another run.
    assert largest_difference(tmp_path / "whole" / "unet", tmp_path / "parts" / "unet") < 1e-4


@pytest.mark.parametrize("method", ["training", "distillation", "matching"])
def test_consistency_tuning(data: Path, tmp_path: Path, method: str) -> None:
    train(data, tmp_path / "base", "--max_train_steps=300", "--learning_rate=1e-3")
    options = [f"--dataset_name={data / 'digits.parquet'}", f"--model={tmp_path / 'base'}", "--logger=none"]
    options += [f"--output_dir={tmp_path / 'fast'}", "--max_train_steps=20", f"--method={method}", "--seed=0"]
    run("tune_consistency.py", *options)
    pipe = PFGMPipeline.from_pretrained(tmp_path / "fast").to(DEVICE)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(4, 2, seeded(), output_type="pt").images.isfinite().all()
    likelihoods = [f"--model={tmp_path / 'base'}", f"--dataset_name={data / 'digits.parquet'}"]
    run("evaluate_likelihood.py", *likelihoods, "--max_images=4", f"--output={tmp_path / 'log.jsonl'}")
    log_probs = [record["log_prob"] for record in read_records(tmp_path / "log.jsonl", "image")]
    assert len(log_probs) == 4 and torch.tensor(log_probs).isfinite().all()
