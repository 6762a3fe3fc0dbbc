"""The models that come with the package draw the digits that are asked for."""

from pathlib import Path

import pytest
import torch

from diffusers_pfgm import PFGMPipeline, pretrained_model
from diffusers_pfgm.hub.pretrained import MODELS
from diffusers_pfgm.metrics.feature_networks import load_feature_network
from tests.networks import seeded


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "count"), [("mnist", 10, 50), ("mnist_consistency", 1, 200)])
def test_images_have_the_class_that_was_asked_for(name: str, steps: int, count: int) -> None:
    pipe = PFGMPipeline.from_pretrained(pretrained_model(name))
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(count) % 10
    output = pipe(count, steps, seeded(), output_type="pt", class_labels=labels, guidance_scale=2)
    with torch.no_grad():
        _, logits = load_feature_network("mnist")(output.images * 2 - 1)
    # A share of 99 % of all images leaves one wrong image of 50, and five of 200, by bad luck.
    assert (logits.argmax(1) == labels).double().mean() > 0.97


def test_all_models_together_are_small() -> None:
    files = [path for path in pretrained_model().parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6
    assert {path.suffix for path in files} - {".pyc"} == {".py", ".json", ".safetensors"}


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of 'mnist', 'mnist_consistency', but is 'cifar10'"):
        pretrained_model("cifar10")
    assert {path.name for path in Path(pretrained_model()).parent.iterdir() if path.is_dir()} - {"__pycache__"} == {
        *MODELS
    }
