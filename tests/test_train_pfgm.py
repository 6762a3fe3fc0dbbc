"""The training script, launched as a user launches it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from arguments import parse_args
from demo import split_digits, write_parquet

from diffusers_pfgm import PFGMPipeline
from tests.conftest import seeded

SCRIPT = Path(__file__).parents[1] / "training" / "train_pfgm.py"
TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 2,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet of 200 digits and the configuration of a tiny network."""
    folder = tmp_path_factory.mktemp("data")
    write_parquet(split_digits()[0][:200], folder / "digits.parquet")
    (folder / "config.json").write_text(json.dumps(TINY))
    (folder / "epsilon.json").write_text(json.dumps(TINY | {"out_channels": 1}))
    return folder


def launch(data: Path, output: Path, *options: str, config: str = "config.json") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", str(SCRIPT)]
    command += [f"--dataset_name={data / 'digits.parquet'}", f"--output_dir={output}", "--resolution=8", "--seed=0"]
    command += [f"--model_config_name_or_path={data / config}", "--train_batch_size=32", "--lr_warmup_steps=1"]
    return subprocess.run([*command, *options], capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("run") / "model"
    done = launch(data, output, "--max_train_steps=12", "--checkpointing_steps=4", "--checkpoints_total_limit=2")
    assert done.returncode == 0, done.stderr
    return output, done.stdout + done.stderr


def test_output_is_a_pipeline_with_what_the_data_told(trained: tuple[Path, str]) -> None:
    output, log = trained
    pipe = PFGMPipeline.from_pretrained(output)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    norm = split_digits()[0][:200].flatten(1).norm(dim=1).mean().item()
    assert config.M == 261 and config.sigma_max == pytest.approx(17.8836, rel=1e-4)
    assert config.max_norm == pytest.approx(179.310, rel=1e-4) and 4 < norm < 8
    assert "M = 261, z_max = 17.884, upper_norm = 179.31" in log and "images_per_second" in log
    assert pipe(2, 4, seeded(), output_type="pt").images.isfinite().all()


def test_records_are_written(trained: tuple[Path, str]) -> None:
    output, _ = trained
    assert [path.name for path in (output / "samples").iterdir()] == ["step-000012.png"]
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]
    assert list((output / "logs").rglob("events.out.tfevents*"))
    weights = {path.suffix for path in (output / "checkpoint-12").rglob("*model*") if path.is_file()}
    assert weights == {".safetensors"}


def test_resume_goes_on_where_it_was(data: Path, trained: tuple[Path, str], tmp_path: Path) -> None:
    output, _ = trained
    done = launch(data, output, "--max_train_steps=14", "--resume_from_checkpoint=latest", "--logger=none")
    assert done.returncode == 0, done.stderr
    assert "Resumed from" in done.stdout and "checkpoint-12" in done.stdout
    assert "14/14" in done.stderr and (output / "samples" / "step-000014.png").exists()


def test_a_used_folder_is_refused_and_left_alone(data: Path, trained: tuple[Path, str]) -> None:
    output, _ = trained
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    done = launch(data, output, "--max_train_steps=2")
    assert done.returncode != 0 and "is not empty and may hold another model" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


def test_perturbation_objective_trains_any_aug_dim(data: Path, tmp_path: Path) -> None:
    options = ["--objective=perturbation", "--aug_dim=64", "--max_train_steps=3", "--mixed_precision=bf16"]
    options += ["--gradient_accumulation_steps=2", "--logger=none", "--random_flip"]
    done = launch(data, tmp_path / "model", *options, config="epsilon.json")
    assert done.returncode == 0, done.stderr
    pipe = PFGMPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.aug_dim == 64 and pipe.scheduler.config.sigma_data == 0.5
    assert pipe(2, 4, seeded(), output_type="pt").images.isfinite().all()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--resume_from_checkpoint=latest", "there is no checkpoint-* folder"),
        ("--resume_from_checkpoint=nowhere", "'nowhere' is no folder"),
    ],
)
def test_a_missing_checkpoint_is_explained(data: Path, tmp_path: Path, option: str, message: str) -> None:
    done = launch(data, tmp_path / "model", "--max_train_steps=2", option)
    assert done.returncode != 0 and message in done.stderr


def test_accumulated_steps_are_optimiser_steps(data: Path, tmp_path: Path) -> None:
    # One loader batch is an epoch here, which must not end an accumulation.
    done = launch(
        data,
        tmp_path / "model",
        "--max_train_steps=3",
        "--gradient_accumulation_steps=4",
        "--logger=none",
        "--checkpointing_steps=3",
    )
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "model" / "checkpoint-3" / "optimizer.bin", weights_only=True)
    assert {int(entry["step"]) for entry in state["state"].values()} == {3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--aug_dim=64"], "--aug_dim belongs to --objective perturbation, but --objective is field"),
        (["--objective=perturbation", "--gamma=1"], "--gamma belongs to --objective field"),
        (["--max_train_steps=0"], "--max_train_steps: must be a whole number >= 1, but is 0"),
        (["--checkpointing_steps=-1"], "--checkpointing_steps: must be a whole number >= 1"),
    ],
)
def test_options_that_cannot_serve_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_args(None, options)
    assert message in capsys.readouterr().err


def test_options_default_by_objective() -> None:
    assert parse_args(None, []).gamma == 5.0 and parse_args(None, []).field_batch_size == 2048
    assert parse_args(None, ["--objective=perturbation", "--aug_dim=inf"]).aug_dim == float("inf")
