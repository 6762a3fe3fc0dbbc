"""tune_consistency.py starts from a trained pipeline, and shares data, checkpoints and outputs with train_pfgm.py."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.examples.digits import split_digits, split_labels, write_parquet
from diffusers_pfgm.training.run.consistency_levels import fit_levels
from diffusers_pfgm.training.run.outputs import Outputs
from diffusers_pfgm.training.run.records import read_records
from diffusers_pfgm.training.run.tuning_arguments import parse_tuning_args
from tests.networks import make_smallest_unet, seeded
from tests.training.launch import ACCELERATE, CHEAP_OUTPUTS, TORCHRUN
from tests.training.soak import differences, soak
from tests.training.tune import SCRIPT, is_same, options_of, save_base, tune, weights
from tests.warm_python import WarmProcess, WarmPython


def test_the_output_is_a_pipeline_of_one_and_two_calls(
    python: WarmPython, base: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "tuned"
    done = python.run(*ACCELERATE, SCRIPT, *options_of(base, data, output, "--validation_split=0.2"))
    assert done.returncode == 0, done.stderr
    assert "Consistency distillation from sigma = 120, with consistency_boundary = 0.075." in done.stdout
    pipe = PFGMPipeline.from_pretrained(output)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    assert config.aug_dim == 1 and config.consistency_boundary == 0.075 and config.consistency_guidance is None
    assert config.consistency_clip and config.consistency_sigmas[0] == 120 and 2 <= len(config.consistency_sigmas) <= 3
    for calls in (1, 2):
        output_of_calls = pipe(3, calls, seeded(), output_type="pt")
        assert output_of_calls.nfe == calls and output_of_calls.images.isfinite().all()
    card = (output / "README.md").read_text()
    assert "training/tune_consistency.py" in card and "| consistency model |" in card
    assert not is_same(base / "unet", output / "unet")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["distillation", "training"])
def test_a_resumed_run_ends_with_the_same_weights(
    cheap: None, base: Path, data: Path, tmp_path: Path, method: str
) -> None:
    tune(base, data, tmp_path / "whole", "--checkpointing_steps=2", f"--method={method}")
    (tmp_path / "resumed").mkdir()
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "resumed" / "checkpoint-2")
    resume = [tmp_path / "resumed", "--resume_from_checkpoint=latest", f"--method={method}"]
    tune(base, data, *resume, "--seed=1")
    assert is_same(tmp_path / "whole" / "unet", tmp_path / "resumed" / "unet")
    other = save_base(tmp_path / "other", sigma_max=100.0)
    with pytest.raises(ValueError, match=r"the checkpoint has other settings: .*sigma_max was 120.0 and is 100.0"):
        tune(other, data, *resume)
    other_method = "training" if method == "distillation" else "distillation"
    with pytest.raises(ValueError, match=f"method was '{method}' and is '{other_method}'"):
        tune(base, data, *resume, f"--method={other_method}")
    pipe = PFGMPipeline.from_pretrained(base)
    with torch.no_grad():
        pipe.unet.conv_in.bias.add_(1e-3)
    pipe.save_pretrained(tmp_path / "changed")
    with pytest.raises(ValueError, match="the weights of `--model` are others than at the start of the run"):
        tune(tmp_path / "changed", data, *resume)
    assert "checksum" not in (tmp_path / "whole" / "README.md").read_text()
    if method == "training":  # its stages depend on the length of the run
        with pytest.raises(ValueError, match="max_steps was 4 and is 5"):
            tune(base, data, *resume, "--max_train_steps=5")
    else:
        tune(base, data, *resume, "--max_train_steps=5")


@pytest.mark.slow
def test_a_killed_and_resumed_run_ends_with_the_same_model(python: WarmPython, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", classes=True)

    def start(*words: str) -> WarmProcess:
        return python.start(CHEAP_OUTPUTS, *words)

    def command(folder: Path, output: Path, steps: int) -> list[str]:
        options = ["--guidance_scale=2", "--random_flip", f"--max_train_steps={steps}", "--save_images_epochs=1000"]
        options += ["--checkpointing_steps=1", "--checkpoints_total_limit=3", "--logging_steps=1"]
        return [str(SCRIPT), *options_of(base, folder / "digits.parquet", output, *options)]

    report = soak(tmp_path, kills=2, steps=24, mean_seconds=0.4, start=start, command=command)
    assert len(report.steps) == 2 and not differences(tmp_path, 24)
    one, two = (PFGMPipeline.from_pretrained(tmp_path / name).scheduler for name in ("uninterrupted", "killed"))
    assert one.config.consistency_sigmas == two.config.consistency_sigmas


def test_two_processes_tune_the_same_model(python: WarmPython, cheap: None, data: Path, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", classes=True)
    shared = ["--guidance_scale=2", "--method=distillation", "--max_train_steps=2"]
    tune(base, data, tmp_path / "one", *shared)
    options = options_of(base, data, tmp_path / "two", *shared, "--train_batch_size=8")
    done = python.run(*TORCHRUN, CHEAP_OUTPUTS, SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    one, two = (weights(tmp_path / name / "checkpoint-2" / "unet") for name in ("one", "two"))
    assert max((value - two[name]).abs().max().item() for name, value in one.items()) < 1e-5


def test_half_precision(python: WarmPython, data: Path, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", classes=True)
    options = options_of(base, data, tmp_path / "tuned", "--mixed_precision=bf16", "--logging_steps=1")
    done = python.run(CHEAP_OUTPUTS, SCRIPT, *options, "--guidance_scale=2", "--method=distillation")
    assert done.returncode == 0, done.stderr
    losses = [record["loss"] for record in read_records(tmp_path / "tuned" / "log.jsonl", "train")]
    assert len(losses) == 4 and all(math.isfinite(loss) for loss in losses)


@pytest.mark.slow
@pytest.mark.parametrize("aug_dim", [64.0, None])
def test_other_aug_dims_and_tuned_models_can_be_tuned(
    cheap: None, data: Path, tmp_path: Path, aug_dim: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(tmp_path / "base", aug_dim, solver="heun")
    tune(base, data, tmp_path / "once")
    tune(tmp_path / "once", data, tmp_path / "twice")
    printed = capsys.readouterr().out
    assert "Consistency distillation from" in printed
    assert "Consistency training from" in printed and "from a model that is already tuned" in printed
    config = PFGMPipeline.from_pretrained(tmp_path / "twice").scheduler.config
    assert config.aug_dim == aug_dim and config.consistency_boundary == 0.075


def test_a_pipeline_with_a_scheduler_of_edm_can_be_tuned(cheap: None, data: Path, tmp_path: Path) -> None:
    PFGMPipeline(make_smallest_unet(), EDMEulerScheduler()).save_pretrained(tmp_path / "base")
    tune(tmp_path / "base", data, tmp_path / "tuned")
    config = PFGMPipeline.from_pretrained(tmp_path / "tuned").scheduler.config
    assert config.aug_dim is None and config.sigma_max == 80 and config.consistency_boundary == 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("method", "calls_without_guidance"), [("training", 2), ("distillation", 4)])
def test_guidance_is_learned_and_saved(
    cheap: None, data: Path, tmp_path: Path, method: str, calls_without_guidance: int
) -> None:
    base = save_base(tmp_path / "base", classes=True)
    for scale in ("1", "2"):
        tune(base, data, tmp_path / scale, f"--method={method}", f"--guidance_scale={scale}")
    assert not is_same(tmp_path / "1" / "unet", tmp_path / "2" / "unet")
    steps = 4
    for scale, calls in (("1", calls_without_guidance), ("2", calls_without_guidance * 3 // 2)):
        assert read_records(tmp_path / scale / "log.jsonl", "train")[-1]["calls"] == steps * calls
    pipe = PFGMPipeline.from_pretrained(tmp_path / "2")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.consistency_guidance == 2
    assert pipe(2, 2, generator=seeded(), class_labels=["3", "4"], guidance_scale=2.0).nfe == 2
    assert PFGMPipeline.from_pretrained(tmp_path / "1").scheduler.config.consistency_guidance is None
    for option in ("--guidance_scale=2", "--method=distillation"):
        with pytest.raises(ValueError, match=f"`{option.split('=')[0]}` .* needs the x̂ of a model that is not tuned"):
            tune(tmp_path / "2", data, tmp_path / "again", option)


@pytest.mark.slow
def test_the_loss_falls(cheap: None, base: Path, data: Path, tmp_path: Path) -> None:
    options = ["--method=training", "--max_train_steps=60", "--learning_rate=3e-3", "--logging_steps=10"]
    tune(base, data, tmp_path / "tuned", *options)
    losses = [record["loss"] for record in read_records(tmp_path / "tuned" / "log.jsonl", "train")]
    assert losses[-1] < 0.7 * losses[0]


def test_the_levels_are_those_of_the_smallest_distance(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    options = {"consistency_boundary": 0.075, "consistency_sigmas": [120.0, 1.0, 0.4]}
    pipe = PFGMPipeline.from_pretrained(base)
    pipe.scheduler = PoissonFlowScheduler.from_config(pipe.scheduler.config, **options)

    def distance(samples: Any, images: Any) -> float:
        return min(abs(math.log(sigma / 2)) for sigma in drawn[-1])

    drawn: list[list[float]] = []
    module = "diffusers_pfgm.training.run.consistency_levels"

    def draw(pipe: PFGMPipeline, count: int, steps: int, labels: Any, batch_size: int) -> torch.Tensor:
        drawn.append(pipe.scheduler.config.consistency_sigmas)
        assert steps == len(drawn[-1])
        return torch.zeros(count, 1, 8, 8)

    monkeypatch.setattr(f"{module}.draw_samples", draw)
    monkeypatch.setattr(f"{module}.sliced_wasserstein", distance)
    fitted = fit_levels(pipe, torch.zeros(4, 1, 8, 8), None, 4)
    assert fitted.config.consistency_sigmas[:2] == [120, 2]
    assert fitted.config.consistency_boundary == 0.075
    assert all(sigma < 2 for sigmas in drawn if len(sigmas) == 3 for sigma in sigmas[2:])


@pytest.mark.parametrize(
    ("base_options", "options", "message"),
    [
        ({"aug_dim": None, "beta_schedule": "linear", "sigma_min": None, "sigma_max": None}, [], "has a beta schedule"),
        ({"classes": True, "null_class": False}, ["--guidance_scale=2"], "--class_conditional` and `--label_dropout`"),
        ({}, ["--guidance_scale=2"], "--class_conditional` and `--label_dropout` > 0"),
        ({}, ["--label_column=label"], "has no classes"),
        ({}, ["--image_mode=RGB"], "The images have 3 channels"),
        (
            {"classes": True, "null_class": False},
            ["--label_dropout=0.1"],
            "needs a model that was also trained without",
        ),
    ],
)
def test_models_that_do_not_fit_are_named(
    data: Path, tmp_path: Path, base_options: dict[str, Any], options: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tune(save_base(tmp_path / "base", **base_options), data, tmp_path / "tuned", *options)


def test_a_model_whose_prediction_at_sigma_max_is_far_from_the_mean_is_named(data: Path, tmp_path: Path) -> None:
    pipe = PFGMPipeline.from_pretrained(save_base(tmp_path / "base"))
    with torch.no_grad():
        pipe.unet.conv_out.bias.add_(50)
    pipe.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="does not predict the posterior mean x̂ at sigma_max = 120"):
        tune(tmp_path / "base", data, tmp_path / "tuned")


def test_other_class_names_are_named(data: Path, tmp_path: Path) -> None:
    pipe = PFGMPipeline.from_pretrained(save_base(tmp_path / "base", classes=True))
    other = PFGMPipeline(pipe.unet, pipe.scheduler, {number: f"n{number}" for number in range(10)})
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="The classes of the images are"):
        tune(tmp_path / "base", data, tmp_path / "tuned")


def test_a_network_with_classes_needs_their_names(data: Path, tmp_path: Path) -> None:
    pipe = PFGMPipeline.from_pretrained(save_base(tmp_path / "base", classes=True))
    PFGMPipeline(pipe.unet, pipe.scheduler).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"has classes without names. Save it as a pipeline with `id2label`"):
        tune(tmp_path / "other", data, tmp_path / "tuned")


def test_the_model_is_not_overwritten(base: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=r"is the folder of `--model`. Choose another folder"):
        tune(base, data, base, "--overwrite_output_dir")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "is not empty and may hold another model"),
        (["--resume_from_checkpoint=checkpoint-7", "--overwrite_output_dir"], "'checkpoint-7' is not a folder"),
    ],
)
def test_the_output_folder_and_the_checkpoint_are_checked_before_the_model_is_loaded(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    monkeypatch.setattr(PFGMPipeline, "from_pretrained", lambda *args: pytest.fail("The model was loaded."))
    with pytest.raises(ValueError, match=message):
        tune(base, data, tmp_path, *options)


@pytest.mark.parametrize("source", ["stream", "sorted"])
def test_the_levels_are_fitted_to_images_of_all_classes(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, source: str
) -> None:
    seen = []

    def fit(pipe: Any, images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> PoissonFlowScheduler:
        seen.append((images.shape, labels))
        return pipe.scheduler

    monkeypatch.setattr("diffusers_pfgm.training.run.outputs.fit_levels", fit)
    monkeypatch.setattr("diffusers_pfgm.training.data.training_data.MAX_VALIDATION_IMAGES", 20)
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # five seconds at each end of a stream
    monkeypatch.setattr(Outputs, "_save_figure", lambda self, figure, name: None)
    labels = split_labels()[0][:100].sort()
    write_parquet(split_digits()[0][:100][labels.indices], tmp_path / "sorted.parquet", labels.values)
    base = save_base(tmp_path / "base", classes=True)
    options = ["--max_train_steps=1", *(["--streaming", "--label_column=label"] if source == "stream" else [])]
    tune(base, data if source == "stream" else tmp_path / "sorted.parquet", tmp_path / "tuned", *options)
    assert seen[0][0] == (20, 1, 8, 8) and len(set(seen[0][1].tolist())) >= 8


def test_a_folder_without_a_model_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"`--model` .* cannot be loaded"):
        tune(tmp_path / "empty", data, tmp_path / "tuned")


def test_more_calls_than_levels_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_tuning_args(None, ["--model=base", "--dataset_name=data", "--num_inference_steps=4"])
    assert "--num_inference_steps must be at most 3" in capsys.readouterr().err
