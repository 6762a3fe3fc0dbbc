"""The physics example saves all figures, and its printed numbers confirm the physics."""

import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from diffusers_pfgm import NCSNpp, PFGMPipeline, PoissonFlowScheduler, PoissonKernel
from tests.networks import make_tiny_pipeline, seeded
from tests.scripts import load_script

pytestmark = pytest.mark.usefixtures("quick_layout")
FIGURES = ("field-lines", "hemisphere-plane", "hemisphere-digits", "trajectories", "denoised")


@pytest.mark.slow
def test_physics_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script("physics_pictures")
    example.main(["--output_dir", str(tmp_path), "--num_frames", "3", "--num_inference_steps", "8"])
    printed = capsys.readouterr().out
    for name in (*(f"{figure}.png" for figure in FIGURES), "points.gif", "images.gif"):
        assert str(tmp_path / name) in printed and Image.open(tmp_path / name).width > 200
    assert Image.open(tmp_path / "points.gif").n_frames == 3
    assert Image.open(tmp_path / "images.gif").n_frames == 9

    assert float(re.search(r"at most ([\d.]+)°", printed)[1]) < 0.2
    assert float(re.search(r"([\d.]+) % of 300 lines", printed)[1]) > 95
    p_values = [
        float(value)
        for line in printed.splitlines()
        if "σ = 1000:" in line or "prior" in line
        for value in re.findall(r"(?:polar|elevation) ([\d.e-]+)", line)
    ]
    assert len(p_values) == 6 and min(p_values) > 1e-3
    near_data = re.search(r"latents, N = 64, at σ = 1 .*elevation ([\d.e-]+)", printed)
    assert float(near_data[1]) < 1e-6  # close to the data latents are not uniform
    assert float(re.search(r"from that expected for the data: ([\d.]+) %", printed)[1]) < 5


@pytest.mark.slow
def test_physics_pictures_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load_script("physics_pictures")
    # The first pictures are the same with and without a model.
    latents = {1000.0: PoissonKernel().sample((100, 2), 1000.0, seeded())}
    monkeypatch.setattr(example, "encode_to_sigmas", lambda *arguments: latents)
    monkeypatch.setattr(example, "plot_field_lines", lambda *arguments: Figure())
    monkeypatch.setattr(example, "plot_hemisphere", lambda *arguments: Figure())
    monkeypatch.setattr(example, "animate_points", lambda *arguments: [Image.new("RGB", (8, 8))])
    make_tiny_pipeline(3, (8, 16)).save_pretrained(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--batch_size", "6", "--num_inference_steps", "3"]
    example.main([*options, "--num_frames", "2", "--output_dir", str(tmp_path / "figures")])
    printed = capsys.readouterr().out
    assert "3. Trajectories of " + str(tmp_path / "model") in printed and "expected for the data" not in printed
    assert Image.open(tmp_path / "figures" / "images.gif").n_frames == 4


def test_models_without_pictures_are_refused_before_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load_script("physics_pictures")
    monkeypatch.setattr(example, "plot_field_lines", lambda *arguments: pytest.fail("A figure was drawn."))
    make_tiny_pipeline(4, (8, 16)).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"has 4 channels\. Pass a model of 1 or 3 channels"):
        example.main(["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "figures")])


def test_trajectories_of_a_network_of_pfgm(tmp_path: Path, digits: torch.Tensor) -> None:
    network = NCSNpp(8, 1, 2, block_out_channels=(16, 32), layers_per_block=1, attn_resolutions=())
    PFGMPipeline(network, PoissonFlowScheduler(max_norm=300.0)).save_pretrained(tmp_path)
    args = Namespace(model=str(tmp_path), batch_size=2, num_inference_steps=3, seed=0)
    trajectory, _ = load_script("physics_pictures").record_run(args, digits)
    assert trajectory.states.shape[1:] == (2, 1, 8, 8)
