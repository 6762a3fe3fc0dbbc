"""The outputs of a run besides its checkpoints: the pipeline is saved first, and other failures do not end the run."""

import errno
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.training.run import outputs
from diffusers_pfgm.training.run.arguments import parse_args
from diffusers_pfgm.training.run.checkpoint_contents import write_contents
from diffusers_pfgm.training.run.records import Records, read_records
from diffusers_pfgm.training.run.validation import Validation
from tests.networks import make_tiny_unet, seeded

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def coarse(quick_layout: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit the spacing of the noise levels with few network calls."""
    monkeypatch.setattr("diffusers_pfgm.schedulers.fit_sigmas.FINE_STEPS", 10)


def make_outputs(folder: Path, *options: str) -> outputs.Outputs:
    """The outputs of a tiny network whose weights differ from its EMA weights, with ten held-out images."""
    folder.mkdir(exist_ok=True)
    common = [f"--output_dir={folder}", "--resolution=8", "--logger=none", "--num_inference_steps=3"]
    args = parse_args(None, [*common, *options])
    unet = make_tiny_unet()
    ema = EMAModel(unet.parameters(), model_cls=UNet2DModel, model_config=unet.config)
    with torch.no_grad():
        for weight in unet.parameters():
            weight.add_(1.0)
    images = torch.rand(20, 1, 8, 8, generator=seeded()) * 2 - 1
    data: Any = SimpleNamespace(id2label=None, validation=lambda: Validation(images[:10], images[10:]))
    scheduler = PoissonFlowScheduler(max_norm=300.0)
    return outputs.Outputs(args, Accelerator(cpu=True), unet.train(), ema, scheduler, data, {"gamma": 5.0}, None)


def write_checkpoint(folder: Path) -> None:
    folder.mkdir()
    write_contents(folder, 5, {})


def weights(network: torch.nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in network.parameters()]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_weights_are_restored_after_an_error(tmp_path: Path) -> None:
    run = make_outputs(tmp_path)
    before = weights(run.unet)
    with pytest.raises(RuntimeError, match="memory"), run.ema_weights() as pipeline:
        assert not equal(weights(pipeline.unet), before) and not pipeline.unet.training
        raise RuntimeError("out of memory")
    assert equal(weights(run.unet), before) and run.unet.training


@pytest.mark.slow
def test_no_call_has_more_samples_than_eval_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = UNet2DModel.forward

    def record(self: UNet2DModel, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(sample))
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DModel, "forward", record)
    results = {}
    for size in (3, 10):
        run = make_outputs(tmp_path / str(size), f"--eval_batch_size={size}")
        run.at_intervals(7, set(outputs.EPOCH_OPTIONS))
        with run.ema_weights() as pipeline:
            run._fit_spacing(pipeline)
        assert max(sizes) == size
        sizes.clear()
        knots = PFGMPipeline.from_pretrained(run.folder).scheduler.config.sigma_knots
        results[size] = [read_records(run.records.path, "validation")[0]["distance"], *knots]
    assert results[3] == pytest.approx(results[10], rel=1e-4)


def test_the_last_distance_is_that_of_the_saved_pipeline(tmp_path: Path) -> None:
    run = make_outputs(tmp_path)
    run.at_the_end(5)
    saved = PFGMPipeline.from_pretrained(tmp_path)
    saved.set_progress_bar_config(disable=True)
    assert saved.scheduler.config.sigma_knots is not None and run.validation is not None
    recorded = read_records(run.records.path, "validation")[-1]["distance"]
    assert recorded == pytest.approx(run.validation.distance(saved, 3), rel=1e-6)
    saved.scheduler = PoissonFlowScheduler.from_config(saved.scheduler.config, sigma_knots=None)
    assert recorded != pytest.approx(run.validation.distance(saved, 3), rel=1e-5)


def test_the_pipeline_is_saved_even_if_all_other_outputs_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_outputs(tmp_path)
    write_checkpoint(tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-6").mkdir()  # a damaged one
    ema_weights = run.ema.shadow_params
    pipeline_saved = []

    def fail(error: Exception, *args: Any, **kwargs: Any) -> None:
        pipeline_saved.append((tmp_path / "model_index.json").exists())
        raise error

    for owner, name, error in (
        (outputs, "save_samples", torch.OutOfMemoryError("CUDA out of memory")),
        (Validation, "distance", MemoryError()),
        (outputs, "fit_sigmas", RuntimeError("not enough memory")),
        (outputs, "plot_training", ZeroDivisionError()),
        (outputs, "make_model_card", KeyError("sample_size")),
        (Accelerator, "log", FULL),
        (Records, "write", FULL),
    ):
        monkeypatch.setattr(owner, name, lambda *args, error=error, **kwargs: fail(error))
    with pytest.warns(UserWarning) as caught:
        run.log(7, {"loss": 1.0})
        pipeline_saved.clear()
        run.at_the_end(7)
    assert pipeline_saved and all(pipeline_saved)
    messages = [text for text in (str(warning.message) for warning in caught) if "is skipped" not in text]
    for words in (
        "A record of the tracker failed (OSError: [Errno 28] No space left on device)",
        "A record in log.jsonl failed (OSError: [Errno 28]",
        "The sample grid after step 7 failed (OutOfMemoryError: CUDA out of memory)",
        "The validation after step 7 failed (MemoryError",
        "Fitting the spacing of the noise levels failed (RuntimeError: not enough memory)",
        "The figure training.png failed (",
        "The model card failed (KeyError",
    ):
        assert [message for message in messages if words in message], words
    assert all(f"The last good checkpoint is {tmp_path / 'checkpoint-5'}." in message for message in messages)
    assert equal(weights(PFGMPipeline.from_pretrained(tmp_path).unet), list(ema_weights))


def test_a_pipeline_that_cannot_be_saved_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_outputs(tmp_path)
    write_checkpoint(tmp_path / "checkpoint-5")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise FULL

    monkeypatch.setattr(UNet2DModel, "save_pretrained", fail)
    for call in (lambda: run.at_intervals(7, {"save_model_epochs"}), lambda: run.at_the_end(7)):
        with pytest.raises(
            OSError, match=r"No space left on device.*The last good checkpoint is .*checkpoint-5\. Free some space"
        ):
            call()
    assert not (tmp_path / "model_index.json").exists() and run.unet.training


@pytest.mark.slow
def test_a_damaged_log_is_plotted(tmp_path: Path) -> None:
    run = make_outputs(tmp_path)
    run.log(1, {"loss": 1.0})
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'[1]\n"text"\n{"event": "train"}\n\xff\xfe\n{"event": "train", "step": "2"}\n{"event": "tra')
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run.at_the_end(7)
    assert (tmp_path / "training.png").stat().st_size > 10_000
    assert [record["event"] for record in read_records(tmp_path / "log.jsonl")] == ["train", "validation", "end"]
    assert not list(tmp_path.rglob("*.partial"))


def test_the_command_on_the_card_contains_no_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ada" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    options = ["--train_data_dir", "ada/photos", "--output_dir=/home/ada/my run", "--dataset_name=ylecun/mnist", "-x"]
    monkeypatch.setattr("sys.argv", ["/home/ada/train_pfgm.py", *options])
    expected = "accelerate launch training/train_pfgm.py --train_data_dir photos '--output_dir=my run' "
    assert outputs._command() == expected + "--dataset_name=ylecun/mnist -x"


def test_due_outputs_depend_on_the_step_and_the_options() -> None:
    args = parse_args(None, ["--save_images_epochs=1", "--validation_epochs=2", "--save_model_epochs=3"])
    assert outputs.due(args, 4, 2) == {"save_images_epochs", "validation_epochs"}
    assert outputs.due(args, 5, 2) == set() and len(outputs.due(args, 12, 2)) == 3


@pytest.mark.slow
def test_published_files_do_not_contain_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "secret-place"
    folder.mkdir()
    for name in ("me.png", "samples.png", "log.txt"):
        (folder / name).write_text("private")
    run, published = make_outputs(folder, f"--train_data_dir={tmp_path / 'secret-photos'}"), list[set[str]]()
    run.repo_id = "ada/model"
    monkeypatch.setattr("sys.argv", ["train_pfgm.py", f"--train_data_dir={tmp_path / 'secret-photos'}"])
    monkeypatch.setattr(outputs, "push", lambda folder, *args, last: published.append(set(run.written.published())))
    run.log(7, {"loss": 1.0})
    run.at_intervals(7, {"save_model_epochs"})
    run.at_intervals(14, {"save_images_epochs", "validation_epochs", "save_model_epochs"})
    run.at_the_end(21)
    pipeline = {"model_index.json", "pipeline.py", "README.md", "unet/config.json", "log.jsonl"}
    pipeline |= {"unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"}
    pipeline |= {"scheduler/diffusers_pfgm.py"}
    figures = {"samples/step-000021.png", "training.png", "sigma-density.png"}
    grid = "samples/step-000014.png"
    assert published == [pipeline, pipeline | {grid}, pipeline | {grid} | figures]
    for name in published[-1]:
        content = (folder / name).read_bytes()
        assert str(tmp_path).encode() not in content and b"secret-place" not in content, name
    assert "![Samples](samples/step-000021.png)" in (folder / "README.md").read_text()
