"""Every example shows its help, and runs with the stated results."""

import gzip
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler
from PIL import Image
from sklearn.datasets import load_digits

from diffusers_pfgm import PFGMEditingPipeline, PFGMPipeline, PoissonFlowScheduler, pretrained_model
from diffusers_pfgm.examples import launch
from diffusers_pfgm.examples.classifier import load_labelled_images
from diffusers_pfgm.examples.digits import split_digits, split_labels, write_parquet
from diffusers_pfgm.plots.image_grid import image_grid
from diffusers_pfgm.training.data.source import load_image_dataset
from tests.networks import make_smallest_unet
from tests.scripts import load_script
from tests.training.data.test_images import write_images
from tests.training.launch import CHEAP_OUTPUTS
from tests.warm_python import WarmPython

FOLDER = Path(__file__).parents[2] / "pipelines_examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*/*.py") if "def main(" in path.read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    PFGMPipeline(make_smallest_unet(2), PoissonFlowScheduler(max_norm=300.0)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", EXAMPLES)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script(name)
    with pytest.raises(SystemExit) as stop:
        example.main(["--help"])
    assert stop.value.code == 0 and example.__doc__.splitlines()[0] in capsys.readouterr().out


def test_generate(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "missing" / "folder" / "generated.png"
    load_script("generate").main(
        [
            "--model",
            model,
            "--batch_size",
            "5",
            "--num_inference_steps",
            "3",
            "--device",
            "cpu",
            "--output",
            str(output),
        ]
    )
    assert "5 images from 3 network calls" in capsys.readouterr().out
    assert Image.open(output).size == (3 * 36, 2 * 36)


def test_generate_with_classes_and_guidance(tmp_path: Path) -> None:
    output, model = tmp_path / "digits.png", str(pretrained_model("mnist"))
    arguments = ["--model", model, "--batch_size", "2", "--num_inference_steps", "1", "--device", "cpu"]
    arguments += ["--class_labels", "3", "8", "--guidance_scale", "2", "--output", str(output)]
    load_script("generate").main(arguments)
    seeds = [torch.Generator().manual_seed(i) for i in range(2)]
    images = PFGMPipeline.from_pretrained(model)(2, 1, seeds, output_type="pt", class_labels=[3, 8], guidance_scale=2)
    assert Image.open(output).tobytes() == image_grid(images.images, 4).tobytes()


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_generate_without_training(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, images = tmp_path / "generated.png", tmp_path / "images"
    if source == "folder":
        write_images(images, count=7)
    else:
        images = tmp_path / "digits.parquet"
        write_parquet(split_digits()[0][:7], images)
    load_script("generate_without_training").main(
        ["--images", str(images), "--resolution", "8", "--batch_size", "4", "--output", str(output), "--device", "cpu"]
    )
    assert "4 images from the field of 7 charges, 20 calls" in capsys.readouterr().out
    assert Image.open(output).mode == ("RGB" if source == "folder" else "L")


@pytest.mark.parametrize("kind", ["plain", "classes", "EDM"])
def test_swap_solver(kind: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "solvers.png"
    if kind != "plain":
        model = str(tmp_path)
        unet = make_smallest_unet(1, num_class_embeds=3 if kind == "classes" else None)
        scheduler = EDMEulerScheduler() if kind == "EDM" else PoissonFlowScheduler(prediction_type="sample")
        PFGMPipeline(unet, scheduler, dict(enumerate("abc")) if kind == "classes" else None).save_pretrained(model)
    load_script("swap_solver").main(["--model", model, "--calls", "5", "--output", str(output)])
    table = capsys.readouterr().out.splitlines()[1:5]
    assert [line.split()[-2] for line in table] == ["200", "5", "5", "5"]
    assert Image.open(output).size == (8 * 36, 4 * 36)


@pytest.mark.slow
def test_quality_against_calls(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quick_layout: None
) -> None:
    monkeypatch.setattr("diffusers_pfgm.solvers.step_search.EVALUATIONS", 1)
    for steps in ("FINE_STEPS", "REFERENCE_STEPS"):  # otherwise 200 and 100 for 512 field lines
        monkeypatch.setattr(f"diffusers_pfgm.schedulers.fit_sigmas.{steps}", 10)
    output, data, tuned = tmp_path / "quality.png", tmp_path / "digits.parquet", tmp_path / "tuned"
    write_parquet(split_digits()[1][:20], data)
    pipe = PFGMPipeline.from_pretrained(model)
    levels = {"consistency_boundary": 0.05, "consistency_sigmas": [pipe.scheduler.config.sigma_max, 1.0]}
    PFGMPipeline(pipe.unet, PoissonFlowScheduler.from_config(pipe.scheduler.config, **levels)).save_pretrained(tuned)
    options = ["--model", model, "--data", str(data), "--calls", "3", "5", "--batch_size", "16", "--device", "cpu"]
    options += ["--consistency_model", str(tuned), "--searched", "2"]
    load_script("quality_against_calls").main([*options, "--output", str(output), "--diffusers_solvers"])
    table = [line.split() for line in capsys.readouterr().out.splitlines()[4:-2]]
    names = [" ".join(row[:-4]) for row in table]
    assert [row[-4] for row in table][:8] == ["3", "5"] * 4 and names[8] == "RK45" and len(table) == 24
    assert [*zip(names, (row[-4] for row in table), strict=True)][-2:] == [(names[-1], "1"), (names[-1], "2")]
    assert names[-3:] == ["multistep, searched", "consistency model", "consistency model"]
    load_script("quality_against_calls").main([*options[:5], "4", "--batch_size", "4", "--output", str(output)])
    errors = {name: float(row[-3]) for name, row in zip(names, table, strict=True)}  # each at the most calls
    assert errors["RK45"] < errors["euler"] and Image.open(output).width > 900


def test_a_consistency_model_is_checked_first(model: str) -> None:
    with pytest.raises(ValueError, match=r"`--consistency_model` .* is no consistency model"):
        load_script("quality_against_calls").main(["--model", model, "--data", "none", "--consistency_model", model])


def test_images_have_the_channels_of_the_model(model: str, tmp_path: Path) -> None:
    write_images(tmp_path / "colour", count=3)
    script = load_script("quality_against_calls")
    options = ["--model", model, "--data", str(tmp_path / "colour"), "--batch_size", "1", "--device", "cpu"]
    pipe = script.load_pipeline(model, "cpu")
    assert script.Comparison(script.parse_args(options), pipe).data.shape == (3, 1, 8, 8)


@pytest.mark.slow
def test_swap_schedulers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    example = load_script("swap_schedulers")
    assert example.make_network()(torch.zeros(4, 1, 16, 16), 1.0).sample.shape == (4, 1, 16, 16)
    monkeypatch.setattr(example, "make_network", lambda: make_smallest_unet(sample_size=16))
    example.main([])
    numbers = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    same, ddim, default, edm = numbers
    assert same < 1e-5 and edm < 1e-4 and default < ddim


def test_demo_end_to_end(
    python: WarmPython, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = load_script("demo")

    def run(command: list[str], check: bool) -> None:
        """Run accelerate's launcher with the training script in a new process, which draws no figures."""
        assert command[0] == sys.executable and check
        script = next(number for number, word in enumerate(command) if word.endswith("train_pfgm.py"))
        done = python.run(*command[1:script], CHEAP_OUTPUTS, *command[script:])
        assert done.returncode == 0, done.stderr
        print(done.stdout)

    monkeypatch.setattr(launch.subprocess, "run", run)
    monkeypatch.setattr(demo, "NUM_HELD_OUT", 64)  # the number of digits that it generates each time
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # threads that wait for those of other tests are slow
    demo.main(["--output_dir", str(tmp_path), "--max_train_steps", "3"])
    printed = capsys.readouterr().out
    assert printed.count("network calls") == 3 and "From the data: mean = " in printed
    assert (tmp_path / "held-out.parquet").exists()
    for name in ("training-free.png", "field-lines.png", "trained-20-calls.png", "trained-10-calls.png"):
        assert str(tmp_path / name) in printed and Image.open(tmp_path / name).width > 200
    assert (tmp_path / "model" / "model_index.json").exists()


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A folder of parquet files with labelled digits, converted from IDX files."""
    digits = load_digits()
    (tmp_path / "idx").mkdir()
    for prefix, rows, suffix in (("train", slice(0, 400), ".gz"), ("t10k", slice(400, 500), "")):
        write_idx(tmp_path / "idx" / f"{prefix}-images-idx3-ubyte{suffix}", digits.images[rows] * 15)
        write_idx(tmp_path / "idx" / f"{prefix}-labels-idx1-ubyte{suffix}", digits.target[rows])
    load_script("mnist_to_parquet").main(["--idx_dir", f"{tmp_path / 'idx'}", "--output_dir", str(tmp_path)])
    return tmp_path


def test_mnist_to_parquet(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_image_dataset(str(labelled / "train.parquet"))
    assert len(dataset) == 400 and dataset.features["label"].names == [str(digit) for digit in range(10)]
    assert np.array_equal(np.array(dataset[3]["image"]), (load_digits().images[3] * 15).astype(np.uint8))
    assert dataset[3]["label"] == load_digits().target[3]
    (labelled / "idx" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="has neither t10k-labels-idx1-ubyte nor"):
        load_script("mnist_to_parquet").main(
            ["--idx_dir", f"{labelled / 'idx'}", "--output_dir", f"{labelled / 'new'}"]
        )
    assert not (labelled / "new").exists()
    read_idx = load_script("mnist_to_parquet").read_idx
    images = labelled / "idx" / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"is incomplete: its header states the shape \(100, 8, 8\)"):
        read_idx(images)
    compressed = labelled / "idx" / "train-images-idx3-ubyte.gz"
    content = compressed.read_bytes()
    for damaged in (content[:-9], content[:-8] + bytes(8)):  # incomplete, and with a wrong checksum
        compressed.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is incomplete or damaged: .*Download it again"):
            read_idx(compressed)
    images.write_text("no idx")
    with pytest.raises(ValueError, match="is not an IDX file: it begins with 6e 6f 20 69"):
        read_idx(images)


@pytest.mark.slow
def test_class_accuracy(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unet = make_smallest_unet(2, num_class_embeds=10)
    names = {digit: str(digit) for digit in range(10)}
    PFGMPipeline(unet, PoissonFlowScheduler(max_norm=300.0), names).save_pretrained(labelled / "model")
    for split in ("train", "test"):  # sorted by class, as the images of a folder are
        load_image_dataset(str(labelled / f"{split}.parquet")).sort("label").to_parquet(
            labelled / f"{split}-sorted.parquet"
        )
    options = ["--model", str(labelled / "model"), "--train_data", str(labelled / "train-sorted.parquet")]
    options += ["--test_data", str(labelled / "test-sorted.parquet")]
    options += ["--per_class=3", "--epochs=60", "--num_inference_steps=2"]
    load_script("class_accuracy").main([*options, "--output", str(labelled / "grid.png")])
    printed = capsys.readouterr().out
    accuracy = float(printed.split("Accuracy of the classifier: ")[1].split(" %")[0])
    assert accuracy > 80 and "of 100 real test images" in printed and "of 30 images, 2 steps each" in printed
    distances = [float(word) for word in re.findall(r"(?:distance: |images? |image: )(\d+\.\d+)", printed)]
    assert len(distances) == 4 and distances[0] > 3 * distances[1]  # the untrained network draws no digits
    assert Image.open(labelled / "grid.png").size == (3 * 68, 10 * 68)


@pytest.mark.parametrize(
    ("name", "present", "missing"),
    [
        ("class_accuracy", "--train_data", "--test_data"),
        ("train_mnist_classifier", "--train_data", "--test_data"),
        ("editing", "--data", "--train_data"),
    ],
)
def test_all_images_are_read_before_the_work(
    name: str, present: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script(name)
    monkeypatch.setattr(script, "train_classifier", lambda *arguments: pytest.fail("The classifier was trained."))
    monkeypatch.setattr(
        PFGMEditingPipeline, "encode", lambda *arguments, **options: pytest.fail("Images were encoded.")
    )
    write_parquet(split_digits()[0][:50], tmp_path / "digits.parquet", split_labels()[0][:50])
    model = [] if name == "train_mnist_classifier" else ["--model", str(pretrained_model("mnist"))]
    with pytest.raises(ValueError, match=r"missing\.parquet' is not a file"):
        script.main([*model, present, str(tmp_path / "digits.parquet"), missing, "missing.parquet"])


def test_classes_are_numbered_by_the_models_names(labelled: Path) -> None:
    names = {number: str(9 - number) for number in range(10)}
    images, labels = load_labelled_images(str(labelled / "test.parquet"), 8, 1, names)
    assert images.shape == (100, 1, 8, 8) and torch.equal(labels, 9 - torch.tensor(load_digits().target[400:500]))
    with pytest.raises(ValueError, match=r"has the classes \['0'\], but the model's are \['1', '2'"):
        load_labelled_images(str(labelled / "test.parquet"), 8, 1, {number: str(number) for number in range(1, 10)})


@pytest.mark.slow
def test_likelihood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_script("likelihood").main(["--count", "8", "--output", str(tmp_path / "histograms.png")])
    printed = capsys.readouterr().out
    bits = [float(line.split(": ")[1].split(" ")[0]) for line in printed.splitlines()[:3]]
    scores = [float(part.split("\n")[0]) for part in printed.split("AUROC ")[1:]]
    assert bits[0] < bits[1] and len(scores) == 2 and scores[0] > 0.95 and scores[1] > 0.8
    assert Image.open(tmp_path / "histograms.png").width > 500
