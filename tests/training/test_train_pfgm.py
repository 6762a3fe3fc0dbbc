"""The training script, launched as a user launches it."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusers_pfgm import Charges, FieldObjective, LossOutput, PerturbationObjective, PFGMPipeline
from diffusers_pfgm.examples.digits import split_digits, write_parquet
from diffusers_pfgm.schedulers import fit_sigmas
from diffusers_pfgm.training.data import training_data
from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.source import load_image_dataset
from diffusers_pfgm.training.run import loop
from diffusers_pfgm.training.run.arguments import parse_args
from diffusers_pfgm.training.run.hyperparameters import make_objective
from diffusers_pfgm.training.run.outputs import Outputs
from tests.networks import seeded
from tests.training.launch import ACCELERATE, CHEAP_OUTPUTS
from tests.warm_python import WarmPython

SCRIPT = Path(__file__).parents[2] / "training" / "train_pfgm.py"
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


def options_of(data: Path, output: Path, config: str = "config.json") -> list[str]:
    options = [f"--dataset_name={data / 'digits.parquet'}", f"--output_dir={output}", "--resolution=8", "--seed=0"]
    options += ["--objective=field"] if config == "config.json" else []
    return [*options, f"--model_config_name_or_path={data / config}", "--train_batch_size=32", "--lr_warmup_steps=1"]


class Launcher:
    """Runs the script in new processes, without the launcher of accelerate and with cheap outputs."""

    def __init__(self, python: WarmPython) -> None:
        self.python = python

    def __call__(
        self, data: Path, output: Path, *options: str, config: str = "config.json"
    ) -> subprocess.CompletedProcess[str]:
        return self.python.run(CHEAP_OUTPUTS, SCRIPT, *options_of(data, output, config), *options)


@pytest.fixture(scope="module")
def launch(python: WarmPython) -> Launcher:
    return Launcher(python)


@pytest.fixture(scope="module")
def trained(python: WarmPython, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder of a run by accelerate's launcher, and what it has printed."""
    output = tmp_path_factory.mktemp("run") / "model"
    options = [*options_of(data, output), "--max_train_steps=12", "--checkpointing_steps=4"]
    done = python.run(*ACCELERATE, SCRIPT, *options, "--checkpoints_total_limit=2")
    assert done.returncode == 0, done.stderr
    return output, done.stdout + done.stderr


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of this process fit the spacing of the noise levels with few network calls and draw no figures."""
    monkeypatch.setattr(fit_sigmas, "FINE_STEPS", 10)
    monkeypatch.setattr(Outputs, "_save_figure", lambda self, figure, name: None)


@pytest.fixture
def without_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of this process write nothing but checkpoints and records."""
    monkeypatch.setattr(Outputs, "at_the_end", lambda self, step: None)


def test_output_is_a_pipeline_with_hyperparameters_from_the_data(trained: tuple[Path, str]) -> None:
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


def test_the_spacing_is_fitted_and_plotted(trained: tuple[Path, str]) -> None:
    output, _ = trained
    scheduler = PFGMPipeline.from_pretrained(output).scheduler
    assert len(scheduler.config.sigma_knots) == 33 and (output / "sigma-density.png").stat().st_size > 5000
    assert scheduler.config.sigma_knots[0] == pytest.approx(scheduler.config.sigma_max)


def test_a_folder_that_is_not_empty_is_refused_and_not_changed(
    launch: Launcher, data: Path, trained: tuple[Path, str]
) -> None:
    output, _ = trained
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    done = launch(data, output, "--max_train_steps=2")
    assert done.returncode != 0 and "is not empty and may hold another model" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


def test_perturbation_objective_trains_any_aug_dim(launch: Launcher, cheap: None, data: Path, tmp_path: Path) -> None:
    options = ["--aug_dim=64", "--preconditioning=edm", "--max_train_steps=3", "--mixed_precision=bf16"]
    options += ["--gradient_accumulation_steps=2", "--logger=none", "--random_flip"]
    done = launch(data, tmp_path / "model", *options, config="epsilon.json")
    assert done.returncode == 0, done.stderr
    pipe = PFGMPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.aug_dim == 64 and pipe.scheduler.config.sigma_data == 0.5
    assert pipe(2, 4, seeded(), output_type="pt").images.isfinite().all()
    # The spacing is fitted to the network in float32, as it is saved, not to the rounding errors of bf16.
    plain = pipe.scheduler.from_config(pipe.scheduler.config, sigma_knots=None)
    fitted = fit_sigmas.fit_sigmas(pipe.unet, plain, (1, 8, 8), seeded(), 32, 16)
    assert pipe.scheduler.config.sigma_knots == pytest.approx(fitted.config.sigma_knots, rel=1e-4)


def test_a_missing_checkpoint_is_an_error(launch: Launcher, data: Path, tmp_path: Path) -> None:
    done = launch(data, tmp_path / "model", "--max_train_steps=2", "--resume_from_checkpoint=nowhere")
    assert done.returncode != 0 and "'nowhere' is not a folder" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objective=field", "--aug_dim=64"], "--aug_dim belongs to --objective perturbation, but --objective is"),
        (["--gamma=1"], "--gamma belongs to --objective field, but --objective is perturbation"),
        (["--objective=field", "--charges=none"], "--charges none has no field to learn"),
        (["--max_train_steps=0"], "--max_train_steps: must be a whole number >= 1, but is 0"),
        (["--preconditioning=none"], "--preconditioning must be student_t or edm with --objective perturbation"),
        (
            ["--aug_dim=inf", "--preconditioning=none"],
            "--preconditioning must be student_t or edm",
        ),
        (["--objective=field", "--preconditioning=student_t"], "must be none or edm with --objective field"),
        (["--objective=field", "--sigma_data=0.3"], "--sigma_data needs a preconditioning: pass --preconditioning edm"),
        (["--checkpointing_steps=-1"], "--checkpointing_steps: must be a whole number >= 1"),
        (["--dataset_name="], "--dataset_name is empty. Leave it out, or pass a value"),
        (["--output_dir", " "], "--output_dir is empty"),
        (["--resume_from_checkpoint="], "--resume_from_checkpoint is empty"),
    ],
)
def test_invalid_options_are_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(None, options)
    assert message in capsys.readouterr().err


def test_defaults_depend_on_the_objective() -> None:
    field, perturbation, edm = (
        parse_args(None, options) for options in (["--objective=field"], [], ["--preconditioning=edm"])
    )
    assert field.gamma == 5.0 and field.field_batch_size == 2048 and field.charges == "auto"
    assert field.preconditioning == "none" and field.sigma_data is None
    assert perturbation.aug_dim == 1.0 and perturbation.preconditioning == "student_t"
    assert perturbation.charges == "none" and perturbation.sigma_data is None
    assert edm.sigma_data == parse_args(None, ["--aug_dim=inf"]).sigma_data == 0.5


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def largest_difference(first: Path, second: Path) -> float:
    other = weights(second)
    return max((value - other[name]).abs().max().item() for name, value in weights(first).items())


def train(data: Path, output: Path, *options: str, config: str = "config.json") -> None:
    """Train in this process, so that calls can be observed."""
    command = [f"--dataset_name={data / 'digits.parquet'}", f"--output_dir={output}", "--resolution=8", "--seed=0"]
    command += ["--objective=field"] if config == "config.json" else []
    command += [f"--model_config_name_or_path={data / config}", "--train_batch_size=32", "--lr_warmup_steps=1"]
    loop.main(parse_args(None, [*command, "--logger=none", *options]))


def test_the_pipeline_has_the_ema_weights(trained: tuple[Path, str]) -> None:
    output, _ = trained
    assert largest_difference(output / "unet", output / "checkpoint-12" / "unet_ema") == 0
    assert largest_difference(output / "unet", output / "checkpoint-12" / "unet") > 0
    assert largest_difference(output / "checkpoint-8" / "unet_ema", output / "checkpoint-12" / "unet_ema") > 0
    assert not (output / "checkpoint-12" / "model.safetensors").exists()


def test_saving_during_training_does_not_change_the_weights(
    launch: Launcher, data: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    # The other run saved checkpoints after steps 4 and 8, this one does not.
    options = ["--max_train_steps=12", "--checkpointing_steps=12", "--save_model_epochs=1", "--save_images_epochs=1"]
    done = launch(data, tmp_path, *options, "--logger=none", "--overwrite_output_dir")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step-000007.png", "step-000012.png"]
    for part in ("unet", "unet_ema"):
        assert largest_difference(tmp_path / "checkpoint-12" / part, trained[0] / "checkpoint-12" / part) == 0


def test_a_resumed_run_ends_with_the_same_weights(
    launch: Launcher, data: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    output, _ = trained
    # With another seed, weights, order and noise can be the same only if they come from the checkpoint.
    shutil.copytree(output / "checkpoint-8", tmp_path / "checkpoint-8")
    done = launch(data, tmp_path, "--max_train_steps=12", "--resume_from_checkpoint=latest", "--seed=1")
    assert done.returncode == 0, done.stderr
    assert "Resumed from" in done.stdout and "checkpoint-8" in done.stdout
    for part in ("unet", "unet_ema"):
        assert largest_difference(tmp_path / "checkpoint-12" / part, output / "checkpoint-12" / part) == 0
    assert largest_difference(tmp_path / "unet", output / "unet") == 0


@pytest.mark.slow
def test_a_step_perturbs_its_part_of_the_field_batch(
    without_outputs: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    call = FieldObjective.__call__

    def record(self: FieldObjective, model: object, clean: torch.Tensor, **options: Any) -> LossOutput:
        sizes.append((len(clean), options["charges"].shape[0], type(options["charges"])))
        return call(self, model, clean, **options)

    monkeypatch.setattr(FieldObjective, "__call__", record)
    options = ["--max_train_steps=1", "--field_batch_size=100"]
    for charges in ("local", "gathered", "dataset", "auto"):
        train(data, tmp_path / charges, *options, f"--charges={charges}")
    train(data, tmp_path / "mirrored", *options, "--charges=dataset", "--random_flip")
    assert sizes == [(32, 100, torch.Tensor)] * 2 + [(32, 200, Charges)] * 2 + [(32, 400, Charges)]


@pytest.mark.slow
def test_pipelines_are_saved_during_training(
    cheap: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr(PFGMPipeline, "save_pretrained", lambda self, folder: saved.append(folder))
    train(data, tmp_path / "model", "--max_train_steps=9", "--save_model_epochs=1", "--field_batch_size=32")
    assert len(saved) == 2  # after 7 steps of 32, an epoch of 200, and at the end


@pytest.mark.parametrize("field_batch_size", [50, 2048])
def test_gradients_are_accumulated(
    without_outputs: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field_batch_size: int
) -> None:
    steps, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *args: (steps.append(1), step(self, *args))[1])
    options = ["--max_train_steps=3", "--gradient_accumulation_steps=2", f"--field_batch_size={field_batch_size}"]
    train(data, tmp_path / "model", *options)
    assert len(steps) == 3


def test_options_reach_objective_and_scheduler(data: Path) -> None:
    images = ImageTensors(load_image_dataset(str(data / "digits.parquet")), 8)
    options = ["--resolution=8", "--objective=field", "--gamma=3"]
    objective, scheduler = make_objective(parse_args(None, options), images)
    assert objective.parameterization.gamma == scheduler.config.gamma == 3
    assert scheduler.config.sigma_data is None
    objective, scheduler = make_objective(parse_args(None, [*options, "--preconditioning=edm"]), images)
    assert objective.parameterization == scheduler.parameterization and scheduler.config.sigma_data == 0.5
    options = ["--objective=perturbation", "--aug_dim=64", "--prediction_type=v_prediction", "--sigma_data=0.3"]
    objective, scheduler = make_objective(parse_args(None, options), images)
    assert objective.kernel.aug_dim == scheduler.config.aug_dim == 64
    assert objective.parameterization == scheduler.parameterization
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.sigma_data == 0.3
    inf, edm = (
        make_objective(parse_args(None, ["--aug_dim=inf", *options]), images)
        for options in ([], ["--preconditioning=edm"])
    )
    assert inf[1].config.aug_dim is None and inf[1].config == edm[1].config
    assert (inf[0].p_mean, inf[0].p_std) == (edm[0].p_mean, edm[0].p_std) == (-1.2, 1.2)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image folder of three classes and configurations of a tiny network."""
    folder = tmp_path_factory.mktemp("labelled")
    images = split_digits()[0][:60]
    for i, image in enumerate(images):
        (folder / "images" / f"class-{i % 3}").mkdir(parents=True, exist_ok=True)
        pixels = ((image[0] + 1) * 127.5).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / "images" / f"class-{i % 3}" / f"{i}.png")
    (folder / "config.json").write_text(json.dumps(TINY))
    (folder / "epsilon.json").write_text(json.dumps(TINY | {"out_channels": 1}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "dropout"), [("field", 0.5), ("perturbation", 0.0)])
def test_class_labels_reach_the_objective_and_the_pipeline(
    cheap: None, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, dropout: float
) -> None:
    kind = {"field": FieldObjective, "perturbation": PerturbationObjective}[objective]
    calls = []
    call = kind.__call__

    def record(self: FieldObjective, model: object, clean: torch.Tensor, **options: torch.Tensor) -> LossOutput:
        calls.append(options)
        return call(self, model, clean, **options)

    monkeypatch.setattr(kind, "__call__", record)
    config = labelled / ("config.json" if objective == "field" else "epsilon.json")
    options = [f"--train_data_dir={labelled / 'images'}", f"--model_config_name_or_path={config}", "--resolution=8"]
    options += ["--class_conditional", f"--label_dropout={dropout}", f"--objective={objective}", "--seed=0"]
    options += ["--max_train_steps=3", "--train_batch_size=32", "--eval_batch_size=6", "--logger=none"]
    options += ["--charges=local"] if objective == "field" else []
    loop.main(parse_args(None, [*options, f"--output_dir={tmp_path / 'model'}"]))

    class_labels = torch.cat([options["class_labels"] for options in calls])
    assert set(class_labels.tolist()) == ({0, 1, 2, 3} if dropout else {0, 1, 2})
    if objective == "field":
        assert all(options["charge_labels"].shape == options["charges"].shape[:1] for options in calls)
        assert set(torch.cat([options["charge_labels"] for options in calls]).tolist()) == {0, 1, 2}
    pipe = PFGMPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.num_class_embeds == (4 if dropout else 3)
    arguments = {"class_labels": ["class-0", "class-2"], "guidance_scale": 2.0 if dropout else 1.0}
    assert pipe(num_inference_steps=3, output_type="pt", **arguments).images.isfinite().all()


def test_label_options_need_classes() -> None:
    for options in (["--label_column=kind"], ["--class_conditional", "--label_dropout=1"]):
        with pytest.raises(SystemExit):
            parse_args(None, options)


def test_crop_and_flip_options_reach_the_images(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = []

    class Stop(Exception):
        pass

    def record(*args: object, **kwargs: object) -> None:
        images = ImageTensors(*args, **kwargs)
        settings.append((images.center_crop, images.random_flip, images._cache is not None))
        raise Stop

    monkeypatch.setattr(training_data, "ImageTensors", record)
    for options in (["--center_crop"], ["--random_flip", "--dataloader_num_workers=1"]):
        with pytest.raises(Stop):
            train(data, tmp_path / "model", *options)
    assert settings == [(True, False, True), (False, True, False)]


@pytest.mark.parametrize("norm", [0.0, 0.03, 0.042])  # the rule has an M for the last, but its z_max is below sigma_min
def test_uniformly_gray_images_are_an_error(norm: float) -> None:
    images = SimpleNamespace(statistics=lambda: SimpleNamespace(mean_norm=norm), channels=1)
    with pytest.raises(ValueError, match=r"The images are almost uniformly medium gray: .* is 0"):
        make_objective(parse_args(None, ["--resolution=8", "--objective=field"]), images)
