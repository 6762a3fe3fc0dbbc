"""The feature networks: the bundled one recognizes digits, a backbone of transformers is loaded from a folder."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from diffusers_pfgm.metrics.feature_networks import load_feature_network
from tests.networks import seeded


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2 with random weights."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    options = {"crop_size": {"height": 28, "width": 28}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(options | {"image_processor_type": "BitImageProcessor"})
    )
    return folder


def test_the_bundled_classifier_knows_digits_of_another_data_set(digits: torch.Tensor) -> None:
    from sklearn.datasets import load_digits

    images = functional.pad(functional.interpolate(digits[:500].float(), 18, mode="bilinear"), (5, 5, 5, 5), value=-1)
    with torch.no_grad():
        features, logits = load_feature_network("mnist")(images)
    assert features.shape == (500, 128) and logits.shape == (500, 10)
    assert (logits.argmax(1).numpy() == load_digits().target[:500]).mean() > 0.8


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 32, 32)])
def test_the_bundled_classifier_refuses_other_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="takes images 1 x 28 x 28, but got"):
        load_feature_network("mnist")(torch.zeros(2, *shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_features_of_a_backbone_are_its_pooled_output(backbone: Path, channels: int) -> None:
    from transformers import Dinov2Model

    images = torch.rand(3, channels, 28, 28, generator=seeded()) * 2 - 1
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
    with torch.no_grad():
        features, logits = load_feature_network(str(backbone))(images)
        network = Dinov2Model.from_pretrained(backbone).eval()
        expected = network(((images + 1) / 2).expand(-1, 3, -1, -1).sub(mean).div(std)).pooler_output
    assert logits is None
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    assert load_feature_network(str(backbone))(torch.zeros(2, 3, 40, 40))[0].shape == (2, 16)
    with pytest.raises(ValueError, match="1 or 3 channels, but these have 4"):
        load_feature_network(str(backbone))(torch.zeros(2, 4, 28, 28))


def test_a_model_of_text_and_images_is_refused(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1}
    vision = sizes | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"CLIPModel takes input_ids\. It must be .* a vision model of transformers"):
        load_feature_network(str(tmp_path))


def test_an_unknown_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be 'inception', 'mnist', or the folder or Hub id"):
        load_feature_network(str(tmp_path))


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_inception_names_what_it_needs() -> None:
    with pytest.raises(ModuleNotFoundError, match="Install the extra `inception`"):
        load_feature_network("inception")
