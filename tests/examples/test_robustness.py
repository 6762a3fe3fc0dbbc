"""The comparison of augmented dimensions, and the errors that it adds to trained models."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.examples import launch
from diffusers_pfgm.examples.classifier import load_labelled_images
from diffusers_pfgm.examples.digits import split_digits, split_labels, write_parquet
from diffusers_pfgm.examples.robustness import NoiseInSteps, round_weights
from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.source import open_images
from tests.networks import make_smallest_unet
from tests.scripts import load_script


def test_noise_in_steps_is_proportional_to_sigma() -> None:
    pipe = PFGMPipeline(
        ChargeField(torch.zeros(1, 1, 8, 8)), PoissonFlowScheduler(solver="euler", final_sigmas_type="sigma_min")
    )
    states: list[torch.Tensor] = []
    noise = NoiseInSteps(0.5)

    def record(pipe: PFGMPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict:
        states.append(noise(pipe, step, timestep, tensors)["latents"] - tensors["latents"])
        return {}

    pipe(64, 5, torch.Generator().manual_seed(0), callback_on_step_end=record)
    for state, sigma in zip(states, pipe.scheduler.sigmas[1:], strict=True):
        assert state.square().mean().sqrt().item() == pytest.approx(0.5 * sigma.item(), rel=0.05, abs=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_weights_are_multiples_of_the_scale_of_their_channel(bits: int) -> None:
    unet = make_smallest_unet(1)
    before = {name: value.clone() for name, value in unet.named_parameters()}
    for name, value in round_weights(unet, bits).named_parameters():
        torch.testing.assert_close(dict(unet.named_parameters())[name], before[name], rtol=0, atol=0)
        if value.ndim == 1:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)
            continue
        scale = before[name].flatten(1).abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        steps = value.flatten(1) / scale
        assert (steps - steps.round()).abs().max() < 1e-4
        assert ((value - before[name]).flatten(1).abs() <= 0.5001 * scale).all()


@pytest.mark.slow
def test_digits_have_their_labels(tmp_path: Path) -> None:
    for images, labels in zip(split_digits(), split_labels(), strict=True):
        write_parquet(images, tmp_path / "digits.parquet", labels)
        id2label = {number: str(number) for number in range(10)}
        loaded, numbers = load_labelled_images(str(tmp_path / "digits.parquet"), 8, 1, id2label)
        assert torch.equal(numbers, labels) and (loaded - images).abs().max() < 1 / 127


def test_control_has_the_noise_levels_of_one_augmented_dimension() -> None:
    """ln of the noise level is ln σ − ln q, q = |ξ| and ξ normal: known moments if the noise were not limited."""
    example = load_script("quality_against_aug_dim")
    images = torch.randn(500, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 0.5
    mean, std = example.pfgm_log_noise_moments(images)
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(1)).abs()
    logs = -normal[normal > 0.25].log()  # the noise is at most 4 σ
    assert mean == pytest.approx(math.log(0.5) - 0.3 + logs.mean().item(), abs=0.02)
    assert std == pytest.approx((1.3**2 + logs.var().item()) ** 0.5, abs=0.02)


@pytest.mark.slow
def test_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quick_layout: None
) -> None:
    example = load_script("quality_against_aug_dim")
    train_classifier = example.train_classifier
    # The distances of untrained networks are only compared with the table, so a roughly trained classifier is enough.
    monkeypatch.setattr(example, "train_classifier", lambda *args, epochs: train_classifier(*args, epochs=4))
    monkeypatch.setattr(example, "ROBUSTNESS_CALLS", 3)
    trained: list[dict[str, str]] = []

    def train(command: list[str], check: bool) -> None:
        """Save a network without training."""
        assert command[0] == sys.executable and check and "--num_cpu_threads_per_process=1" in command
        script = next(number for number, word in enumerate(command) if word.endswith("train_pfgm.py"))
        assert Path(command[script]).exists()
        options = dict(word.removeprefix("--").split("=", 1) for word in command[script + 1 :])
        trained.append(options)
        config = UNet2DModel.load_config(options["model_config_name_or_path"])
        folder = Path(options["output_dir"])
        torch.manual_seed(int(options["seed"]))
        unet = UNet2DModel.from_config(config, sample_size=8)
        pipe = PFGMPipeline(unet, PoissonFlowScheduler(prediction_type="sample"))
        pipe.save_pretrained(folder)
        (folder / "checkpoint-2").mkdir()  # a run may have no log, if its disk was full

    options = [
        "--aug_dims",
        "1",
        "inf",
        "--widths",
        "8",
        "--max_train_steps",
        "2",
        "--num_samples",
        "20",
        "--threads",
        "1",
    ]
    options += ["--calls", "2", "--noises", "0.2", "--bits", "4", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(launch.subprocess, "run", lambda command, check: None)  # a training that a signal stops
    with pytest.raises(SystemExit, match="The training was stopped"):
        example.main([*options, "--seeds", "0"])
    monkeypatch.setattr(launch.subprocess, "run", train)
    for seeds in (["0"], ["0", "1"]):
        example.main([*options, "--seeds", *seeds])
    names = [(each["preconditioning"], each["aug_dim"], each["seed"]) for each in trained]
    assert names[:4] == [("student_t", "1.0", "0"), ("edm", "inf", "0"), ("edm", "1.0", "0"), ("edm", "inf", "0")]
    assert [seed for *_, seed in names[4:]] == ["1"] * 4  # those of seed 0 are kept
    assert [("p_mean" in each) for each in trained] == [False, False, False, True] * 2
    table = (tmp_path / "table.md").read_text()
    assert (
        table in capsys.readouterr().out
        and "| control | 8 | inf |" in table
        and "| 2 calls | noise 0.2 | 4 bits |" in table
    )
    first = json.loads((tmp_path / "student_t-D1-width8-seed0" / "distances.json").read_text())
    second = json.loads((tmp_path / "student_t-D1-width8-seed1" / "distances.json").read_text())
    with pytest.raises(SystemExit, match="max_train_steps was 2 and is 3"):
        example.main([*options, "--max_train_steps", "3"])
    mean = (first["2 calls"] + second["2 calls"]) / 2
    assert f"| student_t | 8 | 1 | {mean:.1f} ± " in table
    assert Image.open(tmp_path / "quality-against-aug-dim.png").width > 900


def test_data_are_passed_together(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_script("quality_against_aug_dim").main(["--train_data", "images.parquet"])
    assert "--train_data and --test_data must be passed together" in capsys.readouterr().err


@pytest.mark.slow
def test_field_errors_of_models_in_bands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load_script("field_error")
    train, test = split_digits()
    for name, images in (("train", train), ("test", test)):
        write_parquet(images, tmp_path / f"{name}.parquet")
    charges = ImageTensors(open_images(str(tmp_path / "train.parquet")), 8).plain()
    saved = {
        "exact": PFGMPipeline(ChargeField(charges), PoissonFlowScheduler()),
        "random": PFGMPipeline(make_smallest_unet(2), PoissonFlowScheduler()),
        "D = 5": PFGMPipeline(make_smallest_unet(2), PoissonFlowScheduler(5.0)),
        "classes": PFGMPipeline(make_smallest_unet(2, num_class_embeds=3), PoissonFlowScheduler()),
    }
    saved["exact"].unet.config.sample_size = 8
    monkeypatch.setattr(PFGMPipeline, "from_pretrained", saved.__getitem__)
    data = ["--train_data", str(tmp_path / "train.parquet"), "--test_data", str(tmp_path / "test.parquet")]
    perturbed: list[torch.Tensor] = []
    perturb = example.perturb

    def record(x: torch.Tensor, *rest: Any, **named: Any) -> Any:
        perturbed.append(x)
        return perturb(x, *rest, **named)

    monkeypatch.setattr(example, "perturb", record)
    example.main(["--models", "random", "exact", *data, "--num_points", "200", "--device", "cpu"])
    *_, header, _, random, exact = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    assert (
        header[1:3] == ["0.01 < z < 0.1", "0.1 < z < 0.3"]
        and header[-1] == "all"
        and len(header) == len(exact) == len(random)
    )
    assert all(float(error) < 1e-8 for error in exact[1:])
    assert all(float(error) > 1e-2 for error in random[1:])
    first, *_, last = perturbed[0]  # from all of the test images, which may be sorted by class
    assert (first - test[0]).abs().max() < 0.01 and (last - test[-1]).abs().max() < 0.01
    for name in ("D = 5", "classes"):
        with pytest.raises(SystemExit):
            example.main(["--models", name, *data])
        assert f"'{name}' must have aug_dim = 1 and no classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--aug_dims", "0"], "argument --aug_dims: must be a finite number >= 0.01, or inf"),
        (["--widths", "4"], "argument --widths: must be a whole number >= 8"),
        (["--bits", "1"], "argument --bits: must be a whole number >= 2"),
        (["--noises", "-0.1"], "argument --noises: must be a finite number >= 0 and <= 1"),
        (["--calls", "0"], "argument --calls: must be a whole number >= 1"),
    ],
)
def test_invalid_options_are_refused_before_training(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_script("quality_against_aug_dim").main(options)
    assert message in capsys.readouterr().err


def test_a_number_of_bits_is_checked() -> None:
    with pytest.raises(ValueError, match="`bits` must be a whole number >= 2"):
        round_weights(make_smallest_unet(1), 1)


def test_weights_in_half_precision_can_be_rounded() -> None:
    rounded = round_weights(make_smallest_unet(1).half(), 8)
    assert all(value.isfinite().all() and value.dtype == torch.float16 for value in rounded.parameters())
