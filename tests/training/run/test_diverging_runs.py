"""A run that diverges stops with an error, does not save its weights and keeps its good checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput

from diffusers_pfgm import FieldObjective, LossOutput
from diffusers_pfgm.examples.digits import split_digits, write_parquet
from diffusers_pfgm.training.run import loop
from diffusers_pfgm.training.run.arguments import parse_args
from diffusers_pfgm.training.run.divergence_guard import DivergenceError
from diffusers_pfgm.training.run.records import read_records
from tests.training.launch import TORCHRUN
from tests.training.test_train_pfgm import TINY
from tests.warm_python import WarmPython


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diverging")
    write_parquet(split_digits()[0][:100], folder / "digits.parquet")
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


def options(data: Path, output: Path, *more: str) -> list[str]:
    common = [f"--dataset_name={data / 'digits.parquet'}", f"--output_dir={output}", "--resolution=8", "--seed=0"]
    common += [
        f"--model_config_name_or_path={data / 'config.json'}",
        "--objective=field",
        "--logger=none",
        "--lr_warmup_steps=0",
    ]
    return [*common, "--train_batch_size=16", *more]


def file_names(output: Path) -> set[str]:
    return {path.name for path in output.iterdir() if not path.name.startswith(".")}


def spoiled(change: Callable[[int, LossOutput], LossOutput]) -> Callable[..., LossOutput]:
    """An objective whose result is changed, depending on the number of the call, counted from 1."""
    call = FieldObjective.__call__
    calls = []

    def spoil(self: FieldObjective, *args: Any, **kwargs: Any) -> LossOutput:
        calls.append(1)
        return change(len(calls), call(self, *args, **kwargs))

    return spoil


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_run_stops_before_the_step_that_diverges(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def change(number: int, result: LossOutput) -> LossOutput:
        if number != 4:
            return result
        loss = result.loss * (torch.inf if kind == "loss" else 1)
        if kind == "gradient":
            loss.register_hook(lambda gradient: gradient * torch.inf)
        return LossOutput(loss, result.per_sample, result.sigma)

    monkeypatch.setattr(FieldObjective, "__call__", spoiled(change))
    output = tmp_path / "run"
    more = ["--max_train_steps=9", "--checkpointing_steps=2", "--checkpoints_total_limit=1"]
    with pytest.raises(DivergenceError) as caught:
        loop.main(parse_args(None, options(data, output, *more)))
    cause = "the loss and the norm of the gradient" if kind == "loss" else "the norm of the gradient"
    assert f"The training diverged at step 4: {cause} became NaN or infinite" in str(caught.value)
    assert f"The last good checkpoint is {output / 'checkpoint-2'}." in str(caught.value)
    assert file_names(output) == {"checkpoint-2", "log.jsonl"}
    assert read_records(output / "log.jsonl")[-1]["event"] == "diverged"


@pytest.mark.parametrize("more", [["--max_train_steps=1"], ["--max_train_steps=9", "--save_model_epochs=1"]])
def test_weights_that_diverge_in_the_step_itself_are_not_saved(data: Path, tmp_path: Path, more: list[str]) -> None:
    output = tmp_path / "run"
    with pytest.raises(DivergenceError, match="There is no checkpoint yet"):
        loop.main(parse_args(None, options(data, output, "--learning_rate=1e20", *more)))
    assert file_names(output) == {"log.jsonl"}


def test_finite_weights_without_a_finite_output_are_not_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = UNet2DModel.forward

    def overflow(self: UNet2DModel, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        return output if self.training else UNet2DOutput(output.sample * torch.inf)

    monkeypatch.setattr(UNet2DModel, "forward", overflow)
    output = tmp_path / "run"
    with pytest.raises(DivergenceError, match="diverged at step 3: the network's output became NaN or infinite"):
        loop.main(parse_args(None, options(data, output, "--max_train_steps=3")))
    assert "log.jsonl" in file_names(output) and not {"checkpoint-3", "model_index.json"} & file_names(output)


def test_processes_agree_on_charges_and_on_divergence(python: WarmPython, data: Path, tmp_path: Path) -> None:
    """Rank 0 has memory for every image and rank 1 for none; at step 3 rank 1 alone has a loss that is not finite."""
    output = tmp_path / "run"
    more = ["--max_train_steps=9", "--checkpointing_steps=2"]
    done = python.run(*TORCHRUN, Path(__file__).parent / "unequal_ranks.py", *options(data, output, *more))
    assert done.returncode != 0
    assert "The field of a step is computed from all 100 images" in done.stdout
    # That such a message is also the last line below the launcher's own is tested in test_script_errors.py.
    (error,) = {line for line in done.stderr.splitlines() if line.startswith("unequal_ranks.py: error: ")}
    assert error.startswith("unequal_ranks.py: error: The training diverged at step 3: the loss")
    assert f"The last good checkpoint is {output / 'checkpoint-2'}." in error
    assert file_names(output) == {"checkpoint-2", "log.jsonl"}
    # Neither process prints a traceback.
    assert "divergence.py" not in done.stderr
