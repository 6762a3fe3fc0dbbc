"""tune_consistency.py --method matching trains, saves and resumes two networks, for fixed noise levels."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler, SongUNet
from diffusers_pfgm.training.run import loop
from diffusers_pfgm.training.run.critic import make_critic
from diffusers_pfgm.training.run.divergence_guard import DivergenceGuard
from diffusers_pfgm.training.run.optimization import CRITIC_LEARNING_RATE, make_optimizer
from diffusers_pfgm.training.run.records import read_records
from diffusers_pfgm.training.run.tuning_arguments import (
    LEARNING_RATE,
    MATCHING_LEARNING_RATE,
    parse_tuning_args,
)
from tests.networks import make_smallest_unet, seeded
from tests.training.launch import ACCELERATE, CHEAP_OUTPUTS, TORCHRUN
from tests.training.tune import SCRIPT, is_same, options_of, save_base, tune, weights
from tests.warm_python import WarmPython

SIGMAS = [120.0, 0.975, 0.375]  # σ_max, 1.3 σ_d and 0.5 σ_d


def save_tuned(base: Path, folder: Path) -> Path:
    """Save the network of `base` as a consistency model."""
    pipe = PFGMPipeline.from_pretrained(base)
    options = {"consistency_boundary": 0.075, "consistency_sigmas": [120.0, 2.0], "consistency_clip": True}
    scheduler = PoissonFlowScheduler.from_config(pipe.scheduler.config, **options, final_sigmas_type="zero")
    PFGMPipeline(pipe.unet, scheduler, pipe.config.id2label).save_pretrained(folder)
    return folder


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    return save_tuned(base, tmp_path / "base-tuned")


@pytest.mark.parametrize("num_class_embeds", [None, 3])
def test_the_critic_has_the_outputs_of_the_network_at_each_level(num_class_embeds: int | None) -> None:
    unet = make_smallest_unet(num_class_embeds=num_class_embeds)
    critic = make_critic(unet, 2)
    num_classes = num_class_embeds or 1
    assert critic.config.num_class_embeds == 2 * num_classes
    x = torch.randn(num_classes, 1, 8, 8, generator=seeded())
    labels = torch.arange(num_classes)
    expected = unet(x, 1.0, None if num_class_embeds is None else labels).sample
    for level in range(2):
        assert torch.equal(critic(x, 1.0, labels + level * num_classes).sample, expected)
    critic.conv_in.weight.data.zero_()
    assert unet.conv_in.weight.abs().sum() > 0


def test_a_tuned_model_is_matched_to_its_teacher(
    python: WarmPython, base: Path, tuned: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "matched"
    options = options_of(tuned, data, output, f"--teacher={base}", "--logging_steps=1")
    done = python.run(*ACCELERATE, SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    assert "Distribution matching at sigma = 120, 0.975, from a model that is already tuned." in done.stdout
    pipe = PFGMPipeline.from_pretrained(output)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.consistency_sigmas == SIGMAS[:2] and pipe.unet.config.num_class_embeds is None
    for calls in (1, 2):
        assert pipe(3, calls, seeded(), output_type="pt").images.isfinite().all()
    with pytest.raises(ValueError, match="at most 2"):
        pipe(3, 3)
    assert read_records(output / "log.jsonl", "train")[-1]["calls"] == 4 * 4
    checkpoint = output / "checkpoint-4"
    names = {name: weights(checkpoint / name) for name in ("unet", "unet_ema", "critic")}
    start = weights(base / "unet")
    for name in names:  # both networks have been trained
        assert not torch.equal(names[name]["conv_out.weight"], start["conv_out.weight"])
    files = json.loads((checkpoint / "contents.json").read_text())["files"]
    assert "critic/diffusion_pytorch_model.safetensors" in files
    card = (output / "README.md").read_text()
    assert "checksum" not in card and "| objective | `matching` |" in card


def test_a_model_that_is_not_tuned_is_its_own_teacher(cheap: None, base: Path, data: Path, tmp_path: Path) -> None:
    options = ["--method=matching", "--max_train_steps=1", "--num_inference_steps=3"]
    tune(base, data, tmp_path / "matched", *options)
    config = PFGMPipeline.from_pretrained(tmp_path / "matched").scheduler.config
    assert config.consistency_sigmas == SIGMAS


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_networks(
    cheap: None, base: Path, tuned: Path, data: Path, tmp_path: Path
) -> None:
    shared = [f"--teacher={base}", "--checkpointing_steps=2"]
    tune(tuned, data, tmp_path / "whole", *shared)
    (tmp_path / "resumed").mkdir()
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "resumed" / "checkpoint-2")
    resume = [tmp_path / "resumed", *shared, "--resume_from_checkpoint=latest"]
    tune(tuned, data, *resume, "--seed=1")
    for name in ("unet", "checkpoint-4/unet", "checkpoint-4/unet_ema", "checkpoint-4/critic"):
        assert is_same(tmp_path / "whole" / name, tmp_path / "resumed" / name)
    message = r"consistency_sigmas was \[120.0, 0.975\] and is \[120.0\]; .* first `--num_inference_steps` calls"
    with pytest.raises(ValueError, match=message):
        tune(tuned, data, *resume, "--num_inference_steps=1")
    other = save_base(tmp_path / "other")
    pipe = PFGMPipeline.from_pretrained(other)
    with torch.no_grad():
        pipe.unet.conv_in.bias.add_(1e-3)
    pipe.save_pretrained(other)
    with pytest.raises(ValueError, match="the weights of `--teacher` are others than at the start of the run"):
        tune(tuned, data, *resume, f"--teacher={other}")


def test_two_processes_and_micro_batches_train_the_same_networks(
    python: WarmPython, cheap: None, data: Path, tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base", classes=True)
    tuned = save_tuned(base, tmp_path / "tuned")
    shared = [f"--teacher={base}", "--guidance_scale=2", "--max_train_steps=2"]
    tune(tuned, data, tmp_path / "one", *shared)
    tune(tuned, data, tmp_path / "parts", *shared, "--train_batch_size=8", "--gradient_accumulation_steps=2")
    parts = ["--train_batch_size=4", "--gradient_accumulation_steps=2"]
    options = options_of(tuned, data, tmp_path / "two", *shared, *parts)
    done = python.run(*TORCHRUN, CHEAP_OUTPUTS, SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    for network in ("unet", "critic"):
        one, two, parts = (weights(tmp_path / name / "checkpoint-2" / network) for name in ("one", "two", "parts"))
        for other in (two, parts):
            assert max((value - other[name]).abs().max().item() for name, value in one.items()) < 1e-5
    config = PFGMPipeline.from_pretrained(tmp_path / "one").scheduler.config
    assert config.consistency_guidance == 2
    assert read_records(tmp_path / "one" / "log.jsonl", "train")[-1]["calls"] == 5 * 2


def test_the_critic_is_trained_checked_and_clipped_like_the_network(
    monkeypatch: pytest.MonkeyPatch, cheap: None, base: Path, tuned: Path, data: Path, tmp_path: Path
) -> None:
    clipped: list[list[torch.Size]] = []
    checked: list[int] = []
    checkpointed: list[torch.nn.Module] = []
    clip, check = loop.clip_grad_norm_, DivergenceGuard.check_weights

    def clip_and_note(parameters: Any, max_norm: float) -> torch.Tensor:
        values = list(parameters)
        clipped.append([weight.shape for weight in values])
        return clip(values, max_norm)

    def check_and_note(self: DivergenceGuard, step: int, networks: torch.nn.Module, *args: Any) -> None:
        checked.append(sum(weight.numel() for weight in networks.parameters()))
        check(self, step, networks, *args)

    monkeypatch.setattr(loop, "clip_grad_norm_", clip_and_note)
    monkeypatch.setattr(DivergenceGuard, "check_weights", check_and_note)
    monkeypatch.setattr(UNet2DModel, "enable_gradient_checkpointing", lambda self: checkpointed.append(self))
    options = [f"--teacher={base}", "--max_train_steps=1", "--gradient_checkpointing"]
    tune(tuned, data, tmp_path / "matched", *options)
    unet, critic = (weights(tmp_path / "matched" / "checkpoint-1" / name) for name in ("unet", "critic"))
    assert [len(shapes) for shapes in clipped] == [len(critic)] and len(checkpointed) == 2
    assert checked == [sum(weight.numel() for each in (unet, critic) for weight in each.values())]
    record = read_records(tmp_path / "matched" / "log.jsonl", "train")[-1]
    assert record["loss"] == pytest.approx(record["loss/generator"] + record["loss/critic"])


def test_the_critic_learns_faster_than_the_network() -> None:
    args = parse_tuning_args(None, ["--model=fast", "--teacher=base", "--dataset_name=data"])
    unet = make_smallest_unet()
    groups = make_optimizer(args, unet, make_critic(unet, 2)).param_groups
    assert [group["lr"] for group in groups] == [MATCHING_LEARNING_RATE, CRITIC_LEARNING_RATE * MATCHING_LEARNING_RATE]
    assert sum(len(group["params"]) for group in groups) == 2 * len([*unet.parameters()]) + 1  # and its classes


def test_dropout_is_off_in_both_networks(cheap: None, base: Path, tuned: Path, data: Path, tmp_path: Path) -> None:
    pipe = PFGMPipeline.from_pretrained(base)
    pipe.unet.register_to_config(dropout=0.5)
    pipe.save_pretrained(tmp_path / "dropout")
    for name, teacher in (("with", tmp_path / "dropout"), ("without", base)):
        tune(tuned, data, tmp_path / name, f"--teacher={teacher}", "--max_train_steps=1")
    for network in ("unet", "critic"):
        assert is_same(*(tmp_path / name / "checkpoint-1" / network for name in ("with", "without")))


def test_the_default_method_and_learning_rate_follow_from_the_teacher() -> None:
    def parse(*options: str) -> Any:
        return parse_tuning_args(None, ["--model=fast", "--dataset_name=data", *options])

    assert (parse("--teacher=base").method, parse("--teacher=base").learning_rate) == (
        "matching",
        MATCHING_LEARNING_RATE,
    )
    assert (parse().method, parse().learning_rate) == (None, LEARNING_RATE)
    assert parse("--teacher=base", "--learning_rate=1e-3").learning_rate == 1e-3
    assert parse("--teacher=base", "--method=distillation").learning_rate == LEARNING_RATE


def test_a_tuned_model_can_be_distilled_with_its_teacher(
    cheap: None, base: Path, tuned: Path, data: Path, tmp_path: Path
) -> None:
    options = [f"--teacher={base}", "--method=distillation", "--max_train_steps=1"]
    tune(tuned, data, tmp_path / "distilled", *options)
    assert PFGMPipeline.from_pretrained(tmp_path / "distilled").scheduler.is_consistency_model


def test_models_that_do_not_fit_are_named(base: Path, tuned: Path, data: Path, tmp_path: Path) -> None:
    other = save_base(tmp_path / "other", aug_dim=64.0)
    output = tmp_path / "matched"
    other_network = tmp_path / "song"
    pipe = PFGMPipeline.from_pretrained(base)
    PFGMPipeline(SongUNet(8, 1, 1, (8,), 1, model_channels=8), pipe.scheduler).save_pretrained(other_network)
    for model, options, message in (
        (tuned, [f"--teacher={other_network}"], r"`--teacher` .* has a SongUNet, but only a UNet2DModel"),
        (tuned, [f"--teacher={base}", f"--output_dir={base}"], r"is the folder of `--teacher`"),
        (tuned, ["--method=matching"], r"`--method` matching needs the x̂ .* as `--teacher`"),
        (tuned, [f"--teacher={other}"], r"`--teacher` .* has `aug_dim` = 64.0, but `--model` .* has 1.0"),
        (tuned, [f"--teacher={tuned}"], r"`--teacher` .* is tuned already, so it has no x̂"),
        (tuned, [f"--teacher={tmp_path / 'none'}"], r"`--teacher` .* cannot be loaded"),
        (
            tuned,
            [f"--teacher={base}", "--method=training"],
            r"training without guidance uses no `--teacher`",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            tune(model, data, output, *options)
