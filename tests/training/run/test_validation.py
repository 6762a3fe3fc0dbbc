"""Held-out images, the distance to them, and the best model."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.examples.digits import split_digits, split_labels, write_parquet
from diffusers_pfgm.training.data.training_data import TrainingData
from diffusers_pfgm.training.run import folders
from diffusers_pfgm.training.run.arguments import parse_args
from diffusers_pfgm.training.run.samples import draw_samples, save_samples
from diffusers_pfgm.training.run.validation import BestModel, Validation, split_indices
from tests.networks import make_smallest_unet, make_tiny_pipeline


def exact_pipeline(charges: torch.Tensor) -> PFGMPipeline:
    pipe = PFGMPipeline(ChargeField(charges), PoissonFlowScheduler(max_norm=300.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_split_is_disjoint_complete_and_reproducible() -> None:
    train, held_out = split_indices(100, 0.2, seed=1)
    assert sorted(train + held_out) == list(range(100)) and len(held_out) == 20
    assert (train, held_out) == split_indices(100, 0.2, seed=1) != split_indices(100, 0.2, seed=2)
    for share in (0.001, 0.999):
        with pytest.raises(ValueError, match=rf"`--validation_split` {share} of 100 images holds"):
            split_indices(100, share, seed=0)


@pytest.mark.slow
def test_good_samples_have_the_distance_of_real_images_and_noise_a_larger_one(digits: torch.Tensor) -> None:
    images = digits.float()
    validation = Validation(images[:300], images[300:])
    state = torch.get_rng_state()
    good = validation.distance(exact_pipeline(images[300:]), 20)
    assert good < 1.2 * validation.floor < validation.distance(make_tiny_pipeline(), 5) / 3
    assert torch.equal(state, torch.get_rng_state()) and good == validation.distance(exact_pipeline(images[300:]), 20)


def test_a_data_set_sorted_by_class_is_validated_on_all_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers_pfgm.training.data.training_data.MAX_VALIDATION_IMAGES", 100)
    images, labels = split_digits()[0], split_labels()[0]
    floors = []
    for name, order in (("sorted", labels.argsort(stable=True)), ("shuffled", torch.arange(len(labels)))):
        write_parquet(images[order], tmp_path / f"{name}.parquet", labels[order])
        options = [f"--dataset_name={tmp_path / name}.parquet", "--class_conditional", "--validation_split=0.5"]
        data = TrainingData(parse_args(None, [*options, "--resolution=8"]), 0, Accelerator(cpu=True))
        validation = data.validation()
        assert len(validation.held_out) == 100 and set(validation.labels.tolist()) == set(range(10))
        floors.append(validation.floor)
    assert floors[0] < 1.3 * floors[1]


def test_a_distance_does_not_depend_on_the_batch_size(digits: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    images = digits.float()[:60]
    validation = Validation(images[:10], images[10:])
    pipe = exact_pipeline(images[10:])
    sizes: list[int] = []
    call = ChargeField.forward

    def record(self: ChargeField, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(sample))
        return call(self, sample, *args, **kwargs)

    monkeypatch.setattr(ChargeField, "forward", record)
    parts = validation.distance(pipe, 5, batch_size=3)
    assert set(sizes) == {3, 1}
    assert parts == pytest.approx(validation.distance(pipe, 5), abs=1e-5) and max(sizes) == 10


def test_the_best_model_is_kept_across_restarts(tmp_path: Path) -> None:
    pipe, best = make_tiny_pipeline(), BestModel(tmp_path / "best")
    assert best.offer(pipe, 0.5, step=1) and not best.offer(pipe, 0.6, step=2) and best.offer(pipe, 0.4, step=3)
    again = BestModel(tmp_path / "best")
    assert again.distance == 0.4 and not again.offer(pipe, 0.45, step=4) and not again.offer(pipe, float("nan"), step=5)
    assert PFGMPipeline.from_pretrained(tmp_path / "best") is not None


class Kill(BaseException):
    """Not an `Exception`, so that no handler cleans up, as after a real kill."""


CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.utime", "shutil.rmtree", "ctypes.dlsym"}
kill_after: list[int] = []  # number of changes of the file system before the kill; empty for no kill


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if kill_after and event in CHANGES:
        kill_after[0] -= 1
        if kill_after[0] < 0:
            kill_after.clear()
            raise Kill


@pytest.mark.slow
@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_leaves_the_best_model_with_its_own_distance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    sys.addaudithook(watch)
    old, new = (PFGMPipeline(make_smallest_unet(2), PoissonFlowScheduler(max_norm=300.0)) for _ in range(2))
    torch.nn.init.ones_(new.unet.conv_in.weight)
    BestModel(tmp_path / "old").offer(old, 0.5, step=1)
    distances = set()
    points = 0
    killed = True
    while killed:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / "old", tmp_path / "run" / "best")
        best = BestModel(tmp_path / "run" / "best")
        try:
            kill_after.append(points)
            best.offer(new, 0.4, step=2)
            killed = False
        except Kill:
            points += 1
        finally:
            kill_after.clear()
        if exchanges:  # at any moment; otherwise only after a restart
            assert (tmp_path / "run" / "best" / "validation.json").exists()
        distance = BestModel(tmp_path / "run" / "best").distance
        weights = load_file(tmp_path / "run" / "best" / "unet" / "diffusion_pytorch_model.safetensors")
        assert distance == (0.4 if bool((weights["conv_in.weight"] == 1).all()) else 0.5)
        distances.add(distance)
    assert points > 20 and distances == {0.4, 0.5}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["best"]


def test_a_note_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"distance": null}'):
        (tmp_path / "validation.json").write_text(text)
        with pytest.raises(ValueError, match=r"validation.json does not contain the distance of the best model so far"):
            BestModel(tmp_path)


def test_samples_do_not_depend_on_the_batch_size(digits: torch.Tensor) -> None:
    pipe = exact_pipeline(digits[:50].float())
    whole = draw_samples(pipe, 7, 5)
    assert torch.allclose(draw_samples(pipe, 7, 5, batch_size=3), whole, atol=1e-5)


def test_a_sample_grid_is_written(digits: torch.Tensor, tmp_path: Path) -> None:
    grid = save_samples(exact_pipeline(digits[:50].float()), tmp_path / "samples" / "step-000007.png", 4, 5)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-000007.png"]
    assert Image.open(tmp_path / "samples" / "step-000007.png").size == grid.size == (2 * 68, 2 * 68)
