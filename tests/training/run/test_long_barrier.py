"""Processes wait while the main process works longer than the time-out of a collective."""

from pathlib import Path

from accelerate import Accelerator

from diffusers_pfgm.examples.digits import split_digits, write_parquet
from diffusers_pfgm.training.run.checkpoint_contents import checkpoint_step
from diffusers_pfgm.training.run.long_barrier import LongBarrier
from tests.training.launch import TORCHRUN
from tests.warm_python import WarmPython

RUN = """
import sys, time
from datetime import timedelta
import torch
from diffusers_pfgm.schedulers import fit_sigmas
from diffusers_pfgm.training.data import training_data
from diffusers_pfgm.training.run import loop, outputs
from diffusers_pfgm.training.run.arguments import parse_args
from diffusers_pfgm.training.run.validation import Validation

TIMEOUT, SLOW = 2, 2.5
fit_sigmas.FINE_STEPS = 10
make_accelerator = loop.make_accelerator

def make(args):
    global accelerator
    accelerator = make_accelerator(args)
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=TIMEOUT), None)
    return accelerator

def slow(call):
    def slowed(*args, **options):
        time.sleep(SLOW * accelerator.is_main_process)
        return call(*args, **options)
    return slowed

loop.make_accelerator = make
loop.check_hub = lambda *args: "ada/model"
training_data.load_image_dataset = slow(training_data.load_image_dataset)
Validation.distance = slow(Validation.distance)
outputs.push = lambda *args, **options: None
loop.main(parse_args(None, sys.argv[1:]))
"""


def test_one_process_does_not_wait() -> None:
    with LongBarrier(Accelerator(cpu=True)):
        pass


def test_processes_wait_for_the_main_process(python: WarmPython, tmp_path: Path) -> None:
    write_parquet(split_digits()[0][:40], tmp_path / "digits.parquet")
    (tmp_path / "run.py").write_text(RUN)
    options = [f"--dataset_name={tmp_path / 'digits.parquet'}", f"--output_dir={tmp_path / 'run'}", "--resolution=8"]
    options += ["--max_train_steps=4", "--train_batch_size=8", "--validation_split=0.5", "--validation_epochs=1"]
    options += ["--save_model_epochs=1", "--charges=local", "--field_batch_size=16", "--lr_warmup_steps=1", "--seed=0"]
    options += ["--num_inference_steps=2", "--push_to_hub", "--logger=none", "--eval_batch_size=4"]
    done = python.run(*TORCHRUN, tmp_path / "run.py", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "model_index.json").exists()
    assert [checkpoint_step(path) for path in (tmp_path / "run").glob("checkpoint-*")] == [4]
