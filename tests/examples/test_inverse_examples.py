"""The examples of inverse problems run, and their printed numbers agree with the posterior."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_pfgm.examples.digits import split_digits, write_parquet
from diffusers_pfgm.examples.inverse_problems import make_parser, make_pipeline, psnr
from tests.networks import make_tiny_pipeline
from tests.scripts import load_script


def figures(printed: str) -> dict[str, list[float]]:
    """The numbers of each row of the printed table."""
    rows = {}
    for name in ("pseudo-inverse", "nearest training image", "replacement", "guidance", "latent"):
        lines = [line for line in printed.splitlines() if line.startswith(name)]
        rows[name] = [float(number) for number in lines[0].removeprefix(name).split()] if lines else []
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inpainting", "super_resolution", "deblurring"])
def test_exact_field(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--num_images", "6", "--draws", "4", "--num_sweeps", "2", "--device", "cpu", "--noise_std", "0.3"]
    load_script(name).main([*options, "--output", str(tmp_path / "solved.png")])
    printed = capsys.readouterr().out
    rows = figures(printed)
    assert rows["replacement"][-2] == 20 and rows["guidance"][-2] == 40 and rows["latent"][-2] > 40 + 29 + 3 * 15
    for method in ("guidance", "latent"):
        mean_psnr, psnr_of_mean = rows[method][:2]
        # The mean of the samples has a smaller error than the samples on average.
        assert psnr_of_mean > mean_psnr and psnr_of_mean > rows["pseudo-inverse"][0]
    assert rows["latent"][1] > rows["replacement"][1]
    grid = np.asarray(Image.open(tmp_path / "solved.png"))
    assert (
        grid.shape == (7 * 52, 6 * 52) and "truth, pseudo-inverse, nearest training image, guidance, latent" in printed
    )
    assert len(np.unique(grid[52:104])) > 5 and grid[208:].std() > 50


def test_saved_model_and_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_pipeline().save_pretrained(tmp_path / "model")
    write_parquet(split_digits()[1][:5], tmp_path / "digits.parquet")
    data = ["--data", str(tmp_path / "digits.parquet"), "--train_data", str(tmp_path / "digits.parquet")]
    options = ["--model", str(tmp_path / "model"), "--num_inference_steps", "2", "--num_sweeps", "0", "--draws", "1"]
    output = tmp_path / "solved.png"
    load_script("inpainting").main(
        [*options, *data, "--noise_std", "0.01", "--observed", "border", "--device", "cpu", "--output", str(output)]
    )
    rows = figures(capsys.readouterr().out)
    # The images are also the training images, so the nearest training image of an image is the image itself.
    assert rows["latent"] == [] and rows["nearest training image"][0] > 90 > rows["pseudo-inverse"][0]
    assert Image.open(output).size == (5 * 52, 5 * 52 - 52)


def test_images_have_the_shape_of_the_model(tmp_path: Path) -> None:
    make_tiny_pipeline(channels=3).save_pretrained(tmp_path / "model")
    write_parquet(split_digits()[1][:5], tmp_path / "digits.parquet")
    data = ["--data", str(tmp_path / "digits.parquet"), "--train_data", str(tmp_path / "digits.parquet")]
    parser = make_parser("", "solved.png")
    _, train, truth = make_pipeline(parser.parse_args(["--model", str(tmp_path / "model"), *data, "--device", "cpu"]))
    assert train.shape == truth.shape == (5, 3, 8, 8)
    with pytest.raises(
        ValueError,
        match=r"\(1, 8, 8\) for `--data`, .*\(3, 8, 8\) for the model. Pass both `--data` and `--train_data`",
    ):
        make_pipeline(parser.parse_args(["--model", str(tmp_path / "model")]))
    make_tiny_pipeline(sample_size=(8, 8)).save_pretrained(tmp_path / "pair")
    _, train, _ = make_pipeline(parser.parse_args(["--model", str(tmp_path / "pair"), "--device", "cpu"]))
    assert train.shape[1:] == (1, 8, 8)


def test_images_of_all_classes_are_measured(tmp_path: Path) -> None:
    # A folder is sorted by class, so its first images are of one class.
    sorted_images = torch.linspace(-1, 1, 9).view(9, 1, 1, 1).expand(9, 1, 8, 8)
    write_parquet(sorted_images, tmp_path / "sorted.parquet")
    options = ["--data", str(tmp_path / "sorted.parquet"), "--num_images", "3", "--device", "cpu"]
    _, _, truth = make_pipeline(make_parser("", "solved.png").parse_args(options))
    torch.testing.assert_close(truth.mean((1, 2, 3)), torch.tensor([-1.0, 0.0, 1.0]), atol=0.01, rtol=0)


def test_masks() -> None:
    inpainting = load_script("inpainting")
    masks = {observed: inpainting.make_mask(observed, 8, 12, 0) for observed in inpainting.OBSERVED}
    shares = {observed: mask.float().mean().item() for observed, mask in masks.items()}
    assert shares["upper"] == shares["left"] == 0.5 and shares["border"] == 0.75 and 0.3 < shares["random"] < 0.7
    again = (inpainting.make_mask("random", 8, 12, 3) for _ in range(2))
    assert torch.equal(*again)


def test_blur() -> None:
    kernel, places = load_script("deblurring").gaussian_kernel(1.5), torch.arange(-3.0, 4.0)
    assert kernel.shape == (7, 7) and kernel.sum().item() == pytest.approx(1) and torch.equal(kernel, kernel.T)
    variance = (kernel.sum(0) * places.square()).sum().item()
    assert 0.75 * 1.5**2 < variance < 1.5**2  # less than that of a Gaussian, because the tails are cut off


def test_psnr() -> None:
    truth = torch.zeros(3, 1, 4, 4)
    assert psnr(truth + 0.2, truth) == pytest.approx(20.0, abs=1e-4) and psnr(truth + 7, truth) == pytest.approx(
        6.02, abs=0.01
    )
