"""The scripts name a `--model` that they cannot load, and a `--device` that they cannot use."""

from pathlib import Path
from typing import Any

import pytest

from diffusers_pfgm.training.run import evaluation, evaluation_arguments, likelihood_arguments, likelihood_evaluation
from tests.networks import make_tiny_pipeline


@pytest.mark.parametrize(
    ("arguments", "script", "options"),
    [
        (evaluation_arguments, evaluation, ["--reference=photos", "--output_dir=evaluation"]),
        (likelihood_arguments, likelihood_evaluation, ["--train_data_dir=photos"]),
    ],
)
def test_models_that_cannot_be_loaded_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, script: Any, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for model in (tmp_path / "typo", tmp_path / "empty"):
        with pytest.raises(ValueError, match=f"`--model` '{model}' cannot be loaded: .*[^.]. Pass the output folder"):
            script.main(arguments.parse_args(None, [f"--model={model}", *options]))


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_devices_that_cannot_be_used_are_named(tmp_path: Path, device: str) -> None:
    make_tiny_pipeline().save_pretrained(tmp_path / "model")
    options = [f"--model={tmp_path / 'model'}", "--train_data_dir=photos", f"--output={tmp_path / 'o'}"]
    with pytest.raises(ValueError, match=f"`--device` '{device}' cannot be used: "):
        likelihood_evaluation.main(likelihood_arguments.parse_args(None, [*options, f"--device={device}"]))
