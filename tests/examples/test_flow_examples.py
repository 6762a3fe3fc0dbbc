"""The examples of the invertible flow run, and their printed numbers are plausible."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from sklearn.datasets import load_digits, load_wine

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.examples.digits import split_digits, write_parquet
from tests.networks import make_smallest_unet, seeded
from tests.scripts import load_script
from tests.training.data.test_images import write_images


def run(name: str, *options: str) -> None:
    load_script(name).main(list(options))


def figures(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d[\d,]*\.?\d*(?:e[+-]\d+)?", line.replace(",", ""))]


def spread(path: Path) -> float:
    """Standard deviation of an image's gray values, which is 0 for an empty image."""
    return float(np.asarray(Image.open(path).convert("L"), dtype=np.float64).std())


def save_model(folder: Path, unet: UNet2DModel | None = None, names: dict[int, str] | None = None) -> str:
    """Save a model with random weights. Its x̂ is small and smooth, so that each step can be inverted."""
    unet = make_smallest_unet() if unet is None else unet.eval()
    unet.conv_out.weight.data.mul_(0.1)
    scheduler = PoissonFlowScheduler(max_norm=300.0, sigma_min=0.1, prediction_type="sample")
    PFGMPipeline(unet, scheduler, names).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "classes"), [("float32", None), ("float64", None), ("float32", 2)])
def test_interpolation(dtype: str, classes: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_parquet(split_digits()[1][:12], tmp_path / "digits.parquet")
    unet = make_smallest_unet(num_class_embeds=classes)
    model = save_model(tmp_path / "model", unet, classes and {0: "digit"})
    options = ["--model", model, "--data", str(tmp_path / "digits.parquet"), "--device", "cpu"]
    options += [
        "--pairs",
        "2",
        "--num",
        "4",
        "--dtype",
        dtype,
        "--num_inference_steps",
        "20",
        "--output",
        str(tmp_path / "paths.png"),
    ]
    run("interpolation", *options, "--tolerance", "1e-5")
    printed = capsys.readouterr().out
    errors = [figures(line.split("→")[-1]) for line in printed.splitlines() if "at most" in line]
    assert len(errors) == 4 and "20 steps" in printed and dtype in printed
    assert all(mean <= largest < 1e-3 for mean, largest, _ in errors)
    assert "2 paths of 4 images" in printed and all(name in printed for name in ("by latents", "straight lines"))
    assert Image.open(tmp_path / "paths.png").size == (4 * 52, 2 * 52) and spread(tmp_path / "paths.png") > 20


@pytest.mark.slow
def test_interpolated_images_and_those_to_compare_with_are_of_all_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = torch.ones(40, 1, 8, 8)
    images[:20] = -1  # sorted by class, as the images of a folder are
    write_parquet(images, tmp_path / "sorted.parquet")
    options = ["--model", save_model(tmp_path / "model"), "--data", str(tmp_path / "sorted.parquet"), "--device", "cpu"]
    options += ["--pairs", "5", "--num", "5", "--num_inference_steps", "5", "--tolerance", "1e-2"]
    run("interpolation", *options, "--output", str(tmp_path / "paths.png"))
    real = next(line for line in capsys.readouterr().out.splitlines() if "real images" in line)
    assert figures(real)[0] < 1.4  # 1.6 for the first images, of which two thirds are black, and the last, all white


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("table", "--held_out", "0"),
        ("table", "--tolerance", "0"),
        ("table", "--max_train_steps", "0"),
        ("point_cloud", "--samples", "0"),
        ("point_cloud", "--grid", "1"),
        ("likelihood", "--count", "1"),
        ("likelihood", "--count", "1000"),
    ],
)
def test_options_are_checked_before_the_work(
    name: str, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(name, option, value)
    assert f"argument {option}: must be a" in capsys.readouterr().err


def test_interpolation_needs_enough_images(tmp_path: Path) -> None:
    write_parquet(split_digits()[1][:5], tmp_path / "digits.parquet")
    options = ["--model", save_model(tmp_path / "model"), "--data", str(tmp_path / "digits.parquet"), "--device", "cpu"]
    with pytest.raises(
        ValueError, match="`--data` must have more than 72 images for `--pairs` 8 and `--num` 9, but has 5"
    ):
        run("interpolation", *options)


def write_digits(folder: Path, rows: slice) -> str:
    """Write digits of 8 x 8 pixels to a folder for each class."""
    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images[rows], digits.target[rows], strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / str(label) / f"{index}.png")
    return str(folder)


@pytest.mark.slow
def test_editing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unet = make_smallest_unet(num_class_embeds=10)
    names = {digit: str(digit) for digit in range(10)}
    options = ["--model", save_model(tmp_path / "model", unet, names), "--num_inference_steps", "10"]
    options += ["--data", write_digits(tmp_path / "test", slice(400, 440))]
    train = ["--train_data", write_digits(tmp_path / "train", slice(400)), "--epochs", "30"]
    run("editing", *options, *train, "--output", str(tmp_path / "edited.png"))
    printed = capsys.readouterr().out
    count, error, edits, accuracy, changed, predictions, *_ = printed.splitlines()
    assert count.startswith("10 images") and figures(error)[-1] < 1e-2
    assert "100 images" in edits and "90 images" in changed and figures(accuracy)[0] >= 70
    target, original = figures(predictions)
    assert 0 <= target + original <= 100
    # Eleven columns: an image and ten classes; ten rows of images, two of temperatures
    assert Image.open(tmp_path / "edited.png").size == (11 * 52, 12 * 52) and spread(tmp_path / "edited.png") > 20
    with pytest.raises(ValueError, match=r"`--data` has fewer than 30 images of the classes \[0, 1"):
        run("editing", *options, "--per_class", "30")


def test_editing_needs_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "images", count=2)
    with pytest.raises(ValueError, match=r"has no classes. Train one with `--class_conditional`"):
        run("editing", "--model", save_model(tmp_path / "model"), "--data", str(tmp_path / "images"))


@pytest.mark.slow
def test_point_cloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--max_train_steps", "100", "--samples", "300", "--grid", "32", "--sigma_min", "0.2"]
    run("point_cloud", *options, "--output", str(tmp_path / "points.png"))
    lines = capsys.readouterr().out.splitlines()
    distance, floor = figures(lines[2])
    assert floor < 0.2 and distance < 0.5
    likelihood, best, truncation = figures(lines[4])
    assert best - 2 < likelihood < best and 0 < truncation < 0.1
    assert abs(figures(lines[5])[-1] - 1) < 2e-3
    assert Image.open(tmp_path / "points.png").width > 900 and spread(tmp_path / "points.png") > 20


@pytest.mark.slow
def test_the_moons_density_is_that_of_their_points() -> None:
    moons = load_script("point_cloud")
    mean, scale = torch.tensor([0.5, 0.2], dtype=torch.float64), torch.tensor([0.9, 0.5], dtype=torch.float64)
    axis = torch.linspace(-5, 5, 80, dtype=torch.float64)
    density = moons.moons_log_prob(torch.cartesian_prod(axis, axis), mean, scale).exp().view(80, 80)
    assert torch.trapezoid(torch.trapezoid(density, axis), axis).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--table", "wine", "--max_train_steps", "100", "--samples", "200", "--sigma_min", "0.3"]
    run("table", *options, "--output", str(tmp_path / "table.png"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "wine: 125 rows of 13 columns to train on, 53 held out, D = 64"
    flow, gaussian = figures(lines[3])[0], figures(lines[4])[0]
    assert gaussian - 4 < flow < gaussian + 4
    names = load_wine().feature_names
    assert [line.split()[0] for line in lines[7:20]] == names and lines[20].split()[0] == "mean"
    means = figures(lines[20])
    assert means[0] < 0.6 and means[1] < 0.4 and means[2] < 0.4
    assert Image.open(tmp_path / "table.png").width > 1000 and spread(tmp_path / "table.png") > 20


def test_the_fitted_gaussian_and_quantiles() -> None:
    rows = torch.randn(4000, 3, generator=seeded(), dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5])
    gaussian = load_script("table").fitted_gaussian(rows, 0.5)
    assert torch.allclose(gaussian.covariance_matrix, torch.cov(rows.T) + 0.25 * torch.eye(3, dtype=torch.float64))
    assert torch.allclose(
        load_script("table").quantile_differences(rows + 0.25, rows), torch.full((3,), 0.25, dtype=torch.float64)
    )


def test_a_network_of_points_is_called_like_unet2dmodel() -> None:
    network = importlib.import_module("diffusers_pfgm.examples.point_network").PointNetwork(3).eval()
    points = torch.randn(5, 3, generator=seeded())
    with torch.no_grad():
        one, each = network(points, torch.tensor(0.7)).sample, network(points, torch.full((5,), 0.7)).sample
        other = network(points, torch.tensor(0.1)).sample
    assert one.shape == (5, 3) and torch.allclose(one, each, atol=1e-6) and not torch.allclose(one, other, atol=1e-3)
    assert (network.dtype, network.device.type) == (torch.float32, "cpu")
