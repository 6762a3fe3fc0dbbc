"""Checkpoints of score_sde's code and of PFGM's networks of other sizes: equal outputs, and exact noise levels."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusers_pfgm import NCSNpp, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.hub.convert import convert_checkpoint
from diffusers_pfgm.hub.convert.presets import PRESETS
from diffusers_pfgm.hub.convert.score_sde import read_score_sde
from diffusers_pfgm.training.run.conversion import main
from tests.networks import seeded

PUBLISHED = Path(__file__).parents[1] / "fixtures" / "published"
VE = PUBLISHED / "checkpoint_tiny_score_sde_skip"
PFGM = PUBLISHED / "checkpoint_tiny_ddpmpp"


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(Path(f"{path}_config.json").read_text())
    return values


def write(values: dict[str, Any], folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder / "config.json")


@pytest.mark.parametrize("centered", [False, True])
def test_ve(centered: bool, tmp_path: Path) -> None:
    """The network predicts ε, at the noise levels of images in [-1, 1]."""
    values = read(VE)
    values["data"]["centered"] = centered
    conversion = convert_checkpoint(f"{VE}.pth", write(values, tmp_path))
    io = {key: torch.tensor(value) for key, value in np.load(f"{VE}_io.npz").items()}
    # The file's network was run on images in [0, 1]. One for centered data takes [-1, 1] as its own range.
    x, sigma = 2 * io["x"] - 1, io["sigma"] if centered else 2 * io["sigma"]
    epsilon = -io["sigma"][:, None, None, None] * io["ema_score"]
    with torch.no_grad():
        output = conversion.network(x, sigma).sample
    assert (output - epsilon).abs().max() < 1e-5 * epsilon.abs().max()
    config = PoissonFlowScheduler(**conversion.scheduler_options).config
    scale = 1 if centered else 2
    assert (config.aug_dim, config.prediction_type, config.sigma_data) == (None, "epsilon", None)
    assert (config.sigma_min, config.sigma_max) == (scale * 0.01, scale * 50)


@pytest.mark.parametrize(
    ("size", "model", "count"),
    [
        (32, {"ch_mult": [1, 2, 2, 2], "num_res_blocks": 4}, 62_758_787),
        (256, {"ch_mult": [1, 1, 2, 2, 2, 2, 2], "num_res_blocks": 2}, 65_574_421),
    ],
)
def test_sizes_of_the_networks_of_ve(size: int, model: dict[str, Any], count: int) -> None:
    """Parameters that are trained, counted from score_sde's code with its configurations of CIFAR-10 and FFHQ 256."""
    values = read(VE)
    values["model"] |= {"nf": 128, "attn_resolutions": [16], **model}
    values["data"]["image_size"] = size
    if size == 32:
        values["model"] |= {"progressive": "none", "progressive_input": "residual"}
    _, options, _ = read_score_sde(values)
    with torch.device("meta"):
        assert NCSNpp(**options).num_parameters() == count


def test_ve_becomes_a_pipeline(tmp_path: Path) -> None:
    arguments = [f"--checkpoint={VE}.pth", f"--config={VE}_config.json", f"--output_dir={tmp_path / 'model'}"]
    with pytest.raises(ValueError, match="`--aug_dim` is 64, but a network of the VE or VP SDE has D = inf"):
        main(None, [*arguments, "--aug_dim=64"])
    main(None, [*arguments, "--aug_dim=inf"])
    pipe = PFGMPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.aug_dim is None and pipe.unet.config.timestep_scale == 0.5
    assert pipe(2, 3, seeded(), output_type="pt").images.isfinite().all()


def vp_checkpoint(folder: Path, continuous: bool) -> tuple[Path, str]:
    """PFGM's DDPM++ without its last output channel is that of the VP SDE."""
    content = torch.load(f"{PFGM}.pth", weights_only=True)
    names = [*content["model"]]
    for name in names[-2:]:
        content["model"][name] = content["model"][name][:3]
    averages = content["ema"]["shadow_params"]
    averages[-2:] = [each[:3] for each in averages[-2:]]
    torch.save(content, folder / "vp.pth")
    values = read(PFGM)
    values["training"] |= {"sde": "vpsde", "continuous": continuous}
    return folder / "vp.pth", write(values, folder)


@pytest.mark.parametrize("continuous", [False, True])
def test_vp(continuous: bool, tmp_path: Path) -> None:
    conversion = convert_checkpoint(*vp_checkpoint(tmp_path, continuous))
    io = {key: torch.tensor(value) for key, value in np.load(f"{PFGM}_io.npz").items()}
    with torch.no_grad():
        output = conversion.network(io["x"], io["z"]).sample
    assert (output - io["ema_field_x"]).abs().max() < 1e-5 * io["ema_field_x"].abs().max()
    scheduler = PoissonFlowScheduler(**conversion.scheduler_options)
    sigmas = torch.tensor(scheduler.parameterization.train_sigmas, dtype=torch.float64)
    if continuous:
        t = torch.arange(1000, dtype=torch.float64) / 999
        log_alphas = -(t**2) * (20 - 0.1) / 2 - t * 0.1
        assert sigmas[0] == pytest.approx(1e-3, rel=0.05)  # at t = 1e-5, since there is no noise at t = 0
    else:
        log_alphas = torch.log1p(-torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumsum(0)
    expected = torch.expm1(-log_alphas).sqrt()
    assert torch.allclose(sigmas[1:], expected[1:], rtol=1e-3 if continuous else 1e-4)
    assert torch.allclose(sigmas[20:], expected[20:], rtol=1e-5)
    pipe = PFGMPipeline(conversion.network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(1, 3, seeded(), output_type="pt").images.isfinite().all()
    assert (scheduler.timesteps == scheduler.timesteps.round()).all()


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("training", {"sde": "subvpsde"}, "one of poisson, vesde, vpsde, but is 'subvpsde', .*noise of the sub-VP SDE"),
        ("training", {"sde": "cold"}, r"one of poisson, vesde, vpsde, but is 'cold', so .* converted\.$"),
        ("training", {"continuous": False}, "'vesde' cannot be converted with continuous = False"),
        ("training", {"sde": "poisson"}, "with scale_by_sigma = True, progressive = 'output_skip', centered = False"),
        ("training", {"sde": "vpsde"}, "with scale_by_sigma = True, embedding_type = 'fourier', centered = False"),
        ("model", {"scale_by_sigma": False}, "with scale_by_sigma = False"),
        ("model", {"embedding_type": "positional"}, "with embedding_type = 'positional'"),
        ("model", {"resblock_type": "ddpm", "nonlinearity": "elu"}, "resblock_type = 'ddpm', nonlinearity = 'elu'"),
        ("model", {"fir_kernel": [1, 2, 1]}, r"with fir_kernel = \[1, 2, 1\]"),
        ("model", {"progressive_combine": "cat"}, "with progressive_combine = 'cat'"),
        ("model", {"progressive": "residual"}, "`progressive` must be one of"),
        ("model", {"fir": False}, "Set `fir=True`"),
    ],
)
def test_options_without_an_equivalent_are_refused(
    part: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = copy.deepcopy(read(VE))
    values[part] |= options
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(f"{VE}.pth", write(values, tmp_path))


INNER = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "embedding": "Dense_0", "norm2": "GroupNorm_1", "conv2": "Conv_1"}
INNER |= {"shortcut": "Conv_2", "norm": "GroupNorm_0"}
LINEAR = {"query": "NIN_0", "key": "NIN_1", "value": "NIN_2", "out": "NIN_3"}


def authors_state(network: NCSNpp) -> dict[str, torch.Tensor]:
    """The weights of a DDPM++ under the authors' names: its modules are numbered in the order of our state dict."""
    state, numbers = {"module.sigmas": torch.zeros(1000)}, dict[str, int]()
    for key, value in network.state_dict().items():
        module, _, leaf = key.rpartition(".")
        module, _, inner = module.rpartition(".") if module.rpartition(".")[2] in INNER | LINEAR else (module, "", "")
        prefix = f"module.all_modules.{numbers.setdefault(module, len(numbers))}"
        if inner in LINEAR:
            state[f"{prefix}.{LINEAR[inner]}.{'W' if leaf == 'weight' else 'b'}"] = value.T.contiguous()
        else:
            state[".".join(filter(None, [prefix, INNER.get(inner, ""), leaf]))] = value
    return state


@pytest.mark.parametrize(
    ("preset", "sigma_max", "max_norm", "M"), [("celeba64", 60, 6000, 291), ("bedroom256", 100, 30_000, 356)]
)
def test_presets_at_a_small_width(preset: str, sigma_max: float, max_norm: float, M: int, tmp_path: Path) -> None:
    name, options, sampling = PRESETS[preset]
    published = {"sigma_min": 1e-3, "sigma_max": sigma_max, "max_norm": max_norm, "M": M, "gamma": 5, "prior": "plane"}
    assert sampling == published
    assert name == "NCSNpp"
    widths = options.get("block_out_channels", (128, 256, 256, 256))
    size = options["sample_size"] // 4
    small = options | {"sample_size": size, "block_out_channels": [width // 16 for width in widths]}
    network = NCSNpp(**small, attn_resolutions=(4,)).eval()
    x, z = torch.randn(2, 3, size, size), torch.tensor([0.5, 40.0])
    output = network(x, z).sample
    assert output.shape == (2, 4, size, size)
    output.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())
    network.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(NCSNpp.from_pretrained(tmp_path / "saved")(x, z).sample, output)

    state = authors_state(network)
    averages = [value for key, value in state.items() if key != "module.sigmas"]
    raw = {key: value + 1 for key, value in state.items()}
    torch.save({"model": raw, "ema": {"shadow_params": averages}}, tmp_path / "checkpoint.pth")
    values = read(PFGM)
    values["data"]["image_size"] = size
    values["model"] |= {"nf": widths[0] // 16, "ch_mult": [width // widths[0] for width in widths]}
    values["model"] |= {"num_res_blocks": network.config.layers_per_block, "attn_resolutions": [4]}
    values["sampling"] |= {"z_max": sigma_max, "upper_norm": max_norm}
    values["training"]["M"] = M
    conversion = convert_checkpoint(tmp_path / "checkpoint.pth", write(values, tmp_path))
    with torch.no_grad():
        assert torch.equal(conversion.network(x, z).sample, output)
    assert conversion.scheduler_options == published
