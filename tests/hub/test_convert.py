"""Published checkpoints become pipelines; files that are damaged or of another network are named."""

import json
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_pfgm import PFGMPipeline, SongUNet
from diffusers_pfgm.hub.convert import convert_checkpoint
from diffusers_pfgm.hub.convert.presets import read_configuration
from diffusers_pfgm.training.run.conversion import main
from diffusers_pfgm.training.run.samples import draw_samples
from tests.networks import seeded

PUBLISHED = Path(__file__).parents[1] / "fixtures" / "published"
PFGM = PUBLISHED / "checkpoint_tiny_ddpmpp"
NCSNPP = PUBLISHED / "tiny_edm_ncsnpp"


def convert(checkpoint: Path, config: str, output: Path, *options: str) -> Any:
    main(None, [f"--checkpoint={checkpoint}", f"--config={config}", f"--output_dir={output}", *options])
    pipe = PFGMPipeline.from_pretrained(output)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_checkpoint_of_pfgm_becomes_a_pipeline(tmp_path: Path) -> None:
    pipe = convert(PFGM.with_suffix(".pth"), f"{PFGM}_config.json", tmp_path / "model")
    config = pipe.scheduler.config
    assert (config.aug_dim, config.sigma_max, config.sigma_min, config.max_norm) == (1, 40, 1e-3, 3000)
    assert (config.prediction_type, config.M, config.gamma, config.prior) == ("field", 291, 5, "plane")
    assert pipe(2, 3, seeded(), output_type="pt").images.isfinite().all()
    raw = convert(PFGM.with_suffix(".pth"), f"{PFGM}_config.json", tmp_path / "raw", "--raw")
    assert not torch.equal(raw.unet.conv_in.weight, pipe.unet.conv_in.weight)


@pytest.mark.parametrize("aug_dim", ["inf", "128"])
def test_a_network_of_pfgmpp_becomes_a_pipeline(tmp_path: Path, aug_dim: str) -> None:
    checkpoint = NCSNPP.with_suffix(".safetensors")
    pipe = convert(checkpoint, f"{NCSNPP}_config.json", tmp_path / "model", f"--aug_dim={aug_dim}")
    config = pipe.scheduler.config
    assert config.aug_dim == (None if aug_dim == "inf" else 128) and config.sigma_data == 0.5
    assert pipe(2, 3, seeded(), output_type="pt").images.isfinite().all()


def test_classes_have_their_numbers_as_names(tmp_path: Path) -> None:
    checkpoint = PUBLISHED / "tiny_edm_ddpmpp_class4.safetensors"
    pipe = convert(checkpoint, f"{PUBLISHED}/tiny_edm_ddpmpp_class4_config.json", tmp_path / "model")
    assert pipe.config.id2label == {number: str(number) for number in range(4)}
    assert torch.equal(draw_samples(pipe, 4, 2), draw_samples(pipe, 4, 2, torch.arange(4)))  # all classes in turn


class Persistent:
    """An object as EDM's persistence pickles it: by a function and a description with its state."""

    def __init__(self, state: dict[str, Any], class_name: str) -> None:
        self.description = {"type": "class", "version": 6, "class_name": class_name, "state": state}

    def __reduce__(self) -> Any:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.description,)


def persistent(module: torch.nn.Module) -> Any:
    children = OrderedDict((name, persistent(child)) for name, child in module.named_children())
    state = {"training": False, "_parameters": OrderedDict(module.named_parameters(recurse=False))}
    buffers = {
        name.replace("low_pass", "resample_filter"): value for name, value in module.named_buffers(recurse=False)
    }
    state |= {"_buffers": OrderedDict(buffers), "_modules": children}
    return Persistent(state, type(module).__name__)


@pytest.fixture
def edm_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of EDM's code that its pickles name."""
    module = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(description: Any) -> None:
        raise AssertionError("the code of the file was called")

    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_a_pickle_of_edm_is_read_without_its_code(edm_modules: None, tmp_path: Path) -> None:
    network = convert_checkpoint(f"{NCSNPP}.safetensors", f"{NCSNPP}_config.json").network
    outer = torch.nn.Module()
    outer.model = network
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps({"ema": persistent(outer)}))
    sys.modules.pop("torch_utils.persistence")
    loaded = convert_checkpoint(path, f"{NCSNPP}_config.json").network
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x, 0.3).sample, network(x, 0.3).sample)


@pytest.mark.parametrize("suffix", ["pkl", "safetensors"])
def test_a_network_with_condition_channels(suffix: str, edm_modules: None, tmp_path: Path) -> None:
    """As conditional PFGM++ (arXiv 2312.09754) has it: the network gets x and an image, and predicts x̂."""
    config = json.loads(Path(f"{NCSNPP}_config.json").read_text())
    config |= {"img_channels": 1, "in_channels": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, options, _ = read_configuration(str(tmp_path / "config.json"))
    outer = torch.nn.Module()
    outer.model = SongUNet(**options).eval()
    path = tmp_path / f"network.{suffix}"
    if suffix == "pkl":
        path.write_bytes(pickle.dumps({"ema": persistent(outer)}))
    else:
        save_file(outer.state_dict(), path)
    pipe = convert(path, str(tmp_path / "config.json"), tmp_path / "model", "--aug_dim=64")
    x, condition = torch.randn(2, 1, 16, 16).split(1)
    with torch.no_grad():
        output = pipe.unet(torch.cat([x, condition], dim=1), 0.3).sample
        assert torch.allclose(output, outer.model(torch.cat([x, condition], dim=1), 0.3).sample, atol=1e-5)
    assert output.shape == x.shape and pipe.scheduler.config.aug_dim == 64
    with pytest.raises(ValueError, match="2 input channels and predicts 1, so the other 1 are condition channels"):
        pipe()


def test_checkpoints_of_another_configuration_are_named(tmp_path: Path) -> None:
    config = json.loads(Path(f"{PFGM}_config.json").read_text())
    config["model"]["num_res_blocks"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"belongs to another configuration: .* and \d+ more"):
        convert_checkpoint(f"{PFGM}.pth", str(tmp_path / "config.json"))
    with pytest.raises(ValueError, match=r"belongs to another configuration: .* is missing"):
        convert_checkpoint(f"{NCSNPP}.safetensors", f"{PUBLISHED / 'tiny_edm_adm'}_config.json")
    tensors = load_file(f"{NCSNPP}.safetensors")
    tensors["model.map_layer0.bias"] = torch.zeros(7)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"map_layer0.bias has the shape \(7,\) instead of \(64,\)"):
        convert_checkpoint(tmp_path / "other.safetensors", f"{NCSNPP}_config.json")


def test_other_files_and_configurations_are_named(tmp_path: Path) -> None:
    config = f"{PFGM}_config.json"
    with pytest.raises(ValueError, match=r"`checkpoint` \(option `--checkpoint`\) '.*none.pth' is not a file"):
        convert_checkpoint(tmp_path / "none.pth", config)
    with pytest.raises(ValueError, match=r"`config` \(option `--config`\) must be a JSON file or one of cifar10"):
        convert_checkpoint(f"{PFGM}.pth", "cifar11")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="has no weights under 'model'"):
        convert_checkpoint(tmp_path / "other.pth", config)
    (tmp_path / "cut.pth").write_bytes(Path(f"{PFGM}.pth").read_bytes()[:100_000])
    with pytest.raises(ValueError, match="was not read"):
        convert_checkpoint(tmp_path / "cut.pth", config)
    (tmp_path / "cut.safetensors").write_bytes(Path(f"{NCSNPP}.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="was not read"):
        convert_checkpoint(tmp_path / "cut.safetensors", f"{NCSNPP}_config.json")
    with pytest.raises(ValueError, match=r"`raw` \(option `--raw`\) needs a \.pth"):
        convert_checkpoint(f"{NCSNPP}.safetensors", f"{NCSNPP}_config.json", raw=True)
    (tmp_path / "network.pkl").write_bytes(pickle.dumps({"net": 1}))
    with pytest.raises(ValueError, match="has no network under 'ema'"):
        convert_checkpoint(tmp_path / "network.pkl", f"{NCSNPP}_config.json")
    for values, message in (
        ({"model": {}}, "does not describe a network"),
        ({"model_type": "UNet"}, "does not describe"),
        ({"_class_name": "SongUNet", "layer_per_block": 2}, "does not describe a network: .* 'layer_per_block'"),
        ({"_class_name": "SongUNet", "model_channels": 17}, "does not describe a network: "),
    ):
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(f"{PFGM}.pth", str(tmp_path / "config.json"))
    with pytest.raises(ValueError, match="does not describe a network"):
        convert_checkpoint(f"{PFGM}.pth", f"{PFGM}.pth")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("notes")
    with pytest.raises(ValueError, match="is not empty"):
        convert(Path(f"{PFGM}.pth"), config, tmp_path / "full")
    with pytest.raises(ValueError, match=r"notes.txt is a file. Name a new folder"):
        convert(Path(f"{PFGM}.pth"), config, tmp_path / "full" / "notes.txt")


def test_a_configuration_of_ours_is_read(tmp_path: Path) -> None:
    network = convert_checkpoint(f"{NCSNPP}.safetensors", f"{NCSNPP}_config.json").network
    network.save_config(tmp_path)
    again = convert_checkpoint(f"{NCSNPP}.safetensors", str(tmp_path / "config.json")).network
    assert isinstance(again, SongUNet)
    for name in ("NCSNpp", "UNet2DModel"):  # these say nothing about their sampling, which need not be EDM's
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": name, "sample_size": 16}))
        with pytest.raises(ValueError, match=f"saved configuration of {name}, but must be one of SongUNet or Dhariwal"):
            convert_checkpoint(f"{PFGM}.pth", str(tmp_path / "config.json"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
