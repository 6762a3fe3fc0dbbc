"""evaluate_pfgm.py: the same metrics on any number of processes, after kills, and from files of statistics."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.examples.digits import split_digits, write_parquet
from diffusers_pfgm.metrics.feature_statistics import FeatureStatistics
from diffusers_pfgm.metrics.sliced_wasserstein import sliced_wasserstein
from diffusers_pfgm.training.data.source import load_image_dataset
from diffusers_pfgm.training.run import evaluation
from diffusers_pfgm.training.run.evaluation import main
from diffusers_pfgm.training.run.evaluation_arguments import parse_args
from diffusers_pfgm.training.run.evaluation_images import read_pixels
from diffusers_pfgm.training.run.evaluation_metrics import reference_statistics
from diffusers_pfgm.training.run.generated_images import GeneratedImages
from diffusers_pfgm.training.run.likelihood_evaluation import mean_and_error
from diffusers_pfgm.training.run.output_folder import lock_output_dir
from tests.networks import make_smallest_unet, make_tiny_pipeline
from tests.training.launch import TORCHRUN
from tests.warm_python import WarmPython

SCRIPT = Path(__file__).parents[2] / "training" / "evaluate_pfgm.py"


class FlatFeatures(torch.nn.Module):
    """Features of 8 x 8 images with one weight: multiples of means over squares, and logits from them."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.nn.functional.avg_pool2d(images, 2).flatten(1) * self.weight
        return features, features[:, :10]


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "load_feature_network", lambda name, weights: FlatFeatures())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_pipeline(prediction_type="sample").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files of 120 and 60 digits."""
    folder = tmp_path_factory.mktemp("data")
    train, held_out = split_digits()
    write_parquet(train[:120], folder / "train.parquet")
    write_parquet(held_out[:60], folder / "test.parquet")
    return folder


def options_of(model: Path, data: Path, output: Path, *options: str) -> list[str]:
    shared = [f"--model={model}", f"--reference={data / 'test.parquet'}", f"--output_dir={output}"]
    return [*shared, "--num_images=40", "--num_inference_steps=2", "--batch_size=6", "--features=flat", *options]


def evaluate(arguments: list[str]) -> dict[str, Any]:
    args = parse_args(None, arguments)
    main(args)
    return json.loads((args.output_dir / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("flat")
def test_one_file_has_all_metrics(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--keep_images", "--bits_per_dim_images=2", f"--train_data={data / 'train.parquet'}"]
    result = evaluate(options_of(model, data, tmp_path / "e", *options))
    assert (result["num_images"], result["num_reference_images"], result["nfe"]) == (40, 60, 2)
    assert "--num_images=40" in result["command"] and result["versions"]["torch"]
    metrics = result["metrics"]
    names = {"frechet_distance", "kernel_distance", "precision", "recall", "inception_score"}
    assert names < {*metrics["flat"]} and metrics["bits_per_dim"]["mean"] > 0
    assert {"mean_distance", "mean_distance_of_reference", "nearest"} < {*metrics["nearest_training_images"]}
    assert f"flat frechet_distance: {metrics['flat']['frechet_distance']:.4f}" in capsys.readouterr().out
    # The images that were kept are those that were evaluated.
    folder = tmp_path / "e" / "images"
    images, calls = GeneratedImages(folder, json.loads((folder / "settings.json").read_text())).load()
    held_out = read_pixels("--reference", str(data / "test.parquet"))
    expected = sliced_wasserstein(images / 127.5 - 1, held_out[np.linspace(0, 59, 40).round()] / 127.5 - 1)
    assert metrics["sliced_wasserstein_distance"] == pytest.approx(expected) and calls == 2


SETTINGS = {"num_images": 40, "num_inference_steps": 2, "tolerance": None, "guidance_scale": 1.0}
SETTINGS |= {"batch_size": 6, "seed": 0}


@pytest.mark.slow
@pytest.mark.usefixtures("flat")
def test_a_killed_evaluation_ends_with_the_same_file(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluate(options_of(model, data, tmp_path / "e"))
    path = tmp_path / "e" / "metrics.json"
    path.unlink()
    assert not (tmp_path / "e" / "images").exists()  # without --keep_images
    call = PFGMPipeline.__call__
    for batches in (1, 2, 0, 1, 2):
        left = [True] * batches

        def killed(*arguments: Any, left: list[bool] = left, **options: Any) -> Any:
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return call(*arguments, **options)

        monkeypatch.setattr(PFGMPipeline, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(options_of(model, data, tmp_path / "e"))
    monkeypatch.setattr(PFGMPipeline, "__call__", call)
    (tmp_path / "e" / "images" / ".0000036.npz.partial").write_bytes(b"half of a file")
    assert evaluate(options_of(model, data, tmp_path / "e")) == expected


@pytest.mark.slow
def test_images_do_not_depend_on_the_number_of_processes(model: Path, tmp_path: Path) -> None:
    pipeline = PFGMPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    folders = []
    for processes in (1, 3):
        images = GeneratedImages(tmp_path / str(processes), SETTINGS)
        for process in range(processes):
            accelerator: Any = SimpleNamespace(
                process_index=process, num_processes=processes, is_main_process=process == 0
            )
            images.generate(pipeline, accelerator)
        folders.append(images.load()[0])
    assert torch.equal(*folders)
    assert len({image.numpy().tobytes() for image in folders[0]}) == 40


def test_the_settings_of_images_are_written_once(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / ".settings.json.partial").write_bytes(b"half of a file")  # a killed run left it
    GeneratedImages(folder, SETTINGS | {"seed": 1})  # this run ended before it had an image
    GeneratedImages(folder, SETTINGS)
    written = (folder / "settings.json").stat().st_ino
    GeneratedImages(folder, SETTINGS)  # as the other processes of a run, at the same time
    assert (folder / "settings.json").stat().st_ino == written
    assert json.loads((folder / "settings.json").read_text()) == SETTINGS


def test_a_kill_during_the_removal_of_images_leaves_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = GeneratedImages(tmp_path / "images", SETTINGS)
    for first in (0, 6):
        (tmp_path / "images" / f"{first:07d}.npz").write_bytes(b"")
    remove = os.unlink
    for _ in range(4):
        left = [True]

        def killed(*arguments: Any, left: list[bool] = left, **options: Any) -> None:
            if not left:
                raise KeyboardInterrupt
            left.pop()
            remove(*arguments, **options)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "unlink", killed)
            images.remove()
        images = GeneratedImages(tmp_path / "images", SETTINGS)


def test_one_image_has_no_standard_error() -> None:
    mean, error = mean_and_error([{"bits_per_dim": 2.5}], "bits_per_dim")
    assert mean == 2.5 and np.isnan(error)
    assert mean_and_error([{"bits_per_dim": 2.0}, {"bits_per_dim": 4.0}], "bits_per_dim") == (3.0, pytest.approx(1.0))


@pytest.mark.slow
@pytest.mark.usefixtures("flat")
def test_statistics_take_the_place_of_images(model: Path, data: Path, tmp_path: Path) -> None:
    first = evaluate(options_of(model, data, tmp_path / "e"))
    statistics = tmp_path / "e" / "reference-flat.npz"
    again = evaluate(options_of(model, data, tmp_path / "f", f"--reference={statistics}"))
    assert again["metrics"] == {"flat": first["metrics"]["flat"]} and again["num_reference_images"] is None
    loaded = FeatureStatistics.load(statistics)
    np.savez(tmp_path / "edm.npz", mu=loaded.mean.numpy(), sigma=loaded.covariance.numpy())
    other = evaluate(options_of(model, data, tmp_path / "g", f"--reference={tmp_path / 'edm.npz'}"))
    assert "kernel_distance" not in other["metrics"]["flat"]
    assert other["metrics"]["flat"]["frechet_distance"] == first["metrics"]["flat"]["frechet_distance"]
    np.savez(tmp_path / "other.npz", mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(ValueError, match=r"statistics of 7 features of an unknown network, but .* flat has 16"):
        evaluate(options_of(model, data, tmp_path / "h", f"--reference={tmp_path / 'other.npz'}"))
    assert not (tmp_path / "h" / "images").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("flat")
def test_statistics_of_the_reference_are_kept_for_the_same_images(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    original = FlatFeatures.forward
    monkeypatch.setattr(FlatFeatures, "forward", lambda self, x: (sizes.append(len(x)), original(self, x))[1])
    first = evaluate(options_of(model, data, tmp_path / "e"))
    assert sizes == [2, 40, 60]  # the first two images are blank, to see that the network accepts the size
    assert evaluate(options_of(model, data, tmp_path / "e")) == first and sizes == [2, 40, 60, 2, 40]
    evaluate(options_of(model, data, tmp_path / "e", f"--reference={data / 'train.parquet'}"))
    assert sizes == [2, 40, 60, 2, 40, 2, 40, 100, 20]


def test_statistics_of_the_reference_are_those_of_the_networks_weights(tmp_path: Path) -> None:
    digits = ((split_digits()[0][:90] + 1) * 127.5).round().to(torch.uint8)
    means = [
        reference_statistics(FlatFeatures(weight), "folder", digits, torch.device("cpu"), tmp_path / "kept.npz").mean
        for weight in (1.0, 2.0)  # such as a backbone that was trained further, under the same name
    ]
    assert torch.allclose(means[1], 2 * means[0])


@pytest.mark.slow
@pytest.mark.usefixtures("flat")
def test_other_weights_in_the_same_folder_are_evaluated_anew(model: Path, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    options = options_of(copy, data, tmp_path / "e", "--keep_images", "--bits_per_dim_images=1")
    evaluate(options)
    pipe = PFGMPipeline.from_pretrained(copy)
    with torch.no_grad():
        pipe.unet.conv_in.bias += 1
    pipe.save_pretrained(copy)
    with pytest.raises(ValueError, match=r"results of other settings: model_checksum was \d+ and is \d+"):
        evaluate(options)
    shutil.rmtree(tmp_path / "e" / "images")
    (tmp_path / "e" / "likelihood.jsonl").unlink()
    assert evaluate(options)["metrics"] == evaluate([*options, f"--output_dir={tmp_path / 'f'}"])["metrics"]


def test_models_and_networks_that_cannot_be_used_are_refused_before_the_generation(
    model: Path, data: Path, tmp_path: Path
) -> None:
    def refused(message: str, *options: str) -> None:
        with pytest.raises(ValueError, match=message):
            evaluate(options_of(model, data, tmp_path / "e", *options))
        assert not (tmp_path / "e" / "images").exists()

    refused("'mnist' takes images 1 x 28 x 28, but got", "--features=mnist")
    pipe = PFGMPipeline.from_pretrained(model)
    pipe.unet.register_to_config(sample_size=None)
    pipe.save_pretrained(tmp_path / "any-size")
    refused("has no `sample_size`", f"--model={tmp_path / 'any-size'}")
    unet = make_smallest_unet(sample_size=8, num_class_embeds=3)
    PFGMPipeline(unet, pipe.scheduler, {0: "a", 1: "b", 2: "c"}).save_pretrained(tmp_path / "classes")
    options = [f"--model={tmp_path / 'classes'}", "--bits_per_dim_images=1", f"--reference={data / 'test.parquet'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "load_feature_network", lambda name, weights: FlatFeatures())
        refused("The network needs `class_labels`", *options)
        refused("`--num_images` must be at least 10 images for the metrics of .* but are 9", "--num_images=9")
        broken = save_images(tmp_path / "broken", [(8, 8)] * 4)
        (broken / "2.png").write_bytes(b"no image")
        refused("The training scripts leave out all such images", f"--reference={broken}", "--resolution=8")


@pytest.mark.slow
@pytest.mark.usefixtures("flat")
def test_bits_per_dim_of_a_saved_data_set(model: Path, data: Path, tmp_path: Path) -> None:
    load_image_dataset(str(data / "test.parquet")).save_to_disk(tmp_path / "saved")
    bits = [
        evaluate(options_of(model, data, tmp_path / name, f"--reference={place}", "--bits_per_dim_images=2"))
        for name, place in (("e", tmp_path / "saved"), ("f", data / "test.parquet"))
    ]
    assert bits[0]["metrics"] == bits[1]["metrics"]
    fewer = evaluate(
        options_of(model, data, tmp_path / "e", f"--reference={tmp_path / 'saved'}", "--bits_per_dim_images=1")
    )
    assert fewer["metrics"]["bits_per_dim"]["standard_error"] is None


@pytest.mark.usefixtures("flat")
def test_a_folder_of_images_is_evaluated(data: Path, tmp_path: Path) -> None:
    paths = {name: data / f"{name}.parquet" for name in ("train", "test")}
    options = [f"--reference={paths['test']}", f"--output_dir={tmp_path}", "--features=flat"]
    result = evaluate([*options, f"--images={paths['test']}"])
    assert "nfe" not in result
    assert result["metrics"]["flat"]["frechet_distance"] == pytest.approx(0, abs=1e-9)
    assert result["metrics"]["sliced_wasserstein_distance"] == 0


def test_evaluated_images_of_different_sizes_are_not_advised_to_be_resized_by_an_option(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "mixed", [(8, 8), (8, 9)])
    with pytest.raises(
        ValueError, match=r"must be images of 8 x 8 pixels, but image 1 has 9 x 8\. Resize or crop them\."
    ):
        read_pixels("--images", str(folder))


def save_images(folder: Path, sizes: list[tuple[int, ...]]) -> Path:
    from PIL import Image

    folder.mkdir()
    for number, size in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 255, size, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_a_reference_may_be_gray_where_the_evaluated_images_are_in_colour(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "gray", [(8, 8)] * 101)  # the mode of a data set follows from 100 images
    gray = read_pixels("--reference", str(folder))
    save_images(tmp_path / "gray" / "later", [(8, 8, 3)])
    pixels = read_pixels("--reference", str(folder), (3, 8, 8))
    assert torch.equal(pixels[:101], gray.expand(-1, 3, -1, -1)) and not torch.equal(pixels[101, 0], pixels[101, 1])


@pytest.mark.slow
@pytest.mark.usefixtures("flat")
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(8, 8, 3)] * 4, "has images of 3 channels, but the evaluated images have 1"),
        ([(16, 16)] * 4, "must be images of 8 x 8 pixels, but image 0 has 16 x 16. Pass `--resolution 8`"),
        ([(8, 8)] * 3 + [(8, 9)], "must be images of 8 x 8 pixels, but image 3 has 9 x 8"),
        ([(8, 8)] * 3, "`--reference` .* has 3 images, but precision and recall need at least 4. Pass more"),
    ],
)
def test_references_that_do_not_fit_are_refused(
    model: Path, data: Path, tmp_path: Path, sizes: list[tuple[int, ...]], message: str
) -> None:
    folder = save_images(tmp_path / "reference", sizes)
    with pytest.raises(ValueError, match=message):
        evaluate(options_of(model, data, tmp_path / "e", f"--reference={folder}"))
    assert not (tmp_path / "e" / "images").exists()  # no image was generated in vain


@pytest.mark.slow
@pytest.mark.usefixtures("flat")
def test_larger_references_are_resized_on_request(model: Path, data: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "reference", [(16, 20)] * 20)
    result = evaluate(options_of(model, data, tmp_path / "e", f"--reference={folder}", "--resolution=8"))
    assert result["num_reference_images"] == 20
    with pytest.raises(ValueError, match="`--resolution` must be the size 8 of the evaluated images, but is 16"):
        evaluate(options_of(model, data, tmp_path / "e", f"--reference={folder}", "--resolution=16"))


@pytest.mark.usefixtures("flat")
def test_images_of_other_settings_and_other_files_are_kept(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("notes")
    with pytest.raises(ValueError, match=r"`--output_dir` .* is a file. Name a folder"):
        evaluate(options_of(model, data, tmp_path / "file"))
    evaluate(options_of(model, data, tmp_path / "e", "--keep_images"))
    lock = lock_output_dir(tmp_path / "e")  # as a run at the same time
    with pytest.raises(ValueError, match=r"`--output_dir` .* is in use by a running process"):
        evaluate(options_of(model, data, tmp_path / "e", "--keep_images"))
    lock.release()
    with pytest.raises(ValueError, match=r"has images of other settings.*seed"):
        evaluate(options_of(model, data, tmp_path / "e", "--seed=1"))
    (tmp_path / "f" / "images").mkdir(parents=True)
    (tmp_path / "f" / "images" / "photo.png").write_bytes(b"")
    with pytest.raises(ValueError, match="of other files"):
        evaluate(options_of(model, data, tmp_path / "f"))
    assert (tmp_path / "f" / "images" / "photo.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reference=x", "--output_dir=e"], "exactly one of --model and --images"),
        (["--reference=x", "--output_dir=e", "--model=m", "--images=i"], "exactly one of --model and --images"),
        (["--reference=x.npz", "--output_dir=e", "--model=m", "--bits_per_dim_images=5"], "images as --reference"),
        (["--reference=x.npz", "--output_dir=e", "--model=m", "--train_data=t"], "--train_data needs images as"),
        (["--reference=x", "--output_dir=e", "--model=m", "--num_images=1"], "must be a whole number >= 2"),
    ],
)
def test_options_are_checked(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(None, options)
    assert message in capsys.readouterr().err


def test_two_processes_evaluate_one_model(python: WarmPython, data: Path, tmp_path: Path) -> None:
    images = save_images(tmp_path / "reference", [(28, 28)] * 12)
    scheduler = PoissonFlowScheduler(prediction_type="epsilon")
    PFGMPipeline(make_smallest_unet(sample_size=28), scheduler).save_pretrained(tmp_path / "model")
    options = options_of(tmp_path / "model", data, tmp_path / "e", f"--reference={images}", "--features=mnist")
    run = python.run(*TORCHRUN, SCRIPT, *options)
    assert run.returncode == 0, run.stderr
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    options = options_of(tmp_path / "model", data, tmp_path / "f", f"--reference={images}", "--features=mnist")
    # Sums in another number of threads differ in their last digits.
    alone = evaluate(options)["metrics"]
    assert alone.pop("mnist") == pytest.approx(metrics["metrics"].pop("mnist"), rel=1e-6)
    assert alone == metrics["metrics"]
