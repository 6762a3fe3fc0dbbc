"""A card tells what is known, nothing private, and spares somebody's own words."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from diffusers_pfgm import PFGMPipeline
from diffusers_pfgm.model_card import make_model_card, save_model_card
from tests.conftest import make_tiny_pipeline


@pytest.fixture
def pipe() -> PFGMPipeline:
    return make_tiny_pipeline()


def test_it_tells_what_is_known(pipe: PFGMPipeline) -> None:
    pipe.register_to_config(id2label={0: "cat", 1: "owl"})
    card = make_model_card(
        pipe,
        dataset="ylecun/mnist",
        training={"learning_rate": 1e-4, "hub_token": "hf_secret", "cache_dir": "/home/ada/cache", "gamma": None},
        figures=[("distance", "0.07", "make demo")],
        sample_grid="samples/step-000012.png",
        license="cc-by-4.0",
        repo_id="ada/pfgm-digits",
    )
    data = ModelCard(str(card)).data.to_dict()
    assert (data["library_name"], data["license"], data["datasets"]) == ("diffusers", "cc-by-4.0", ["ylecun/mnist"])
    assert {"pfgm", "diffusers"} <= set(data["tags"])
    text = card.text
    for known in ("# pfgm-digits", "41,682", "1 x 8 x 8", "`field`", "| learning_rate | `0.0001` |", "0: cat, 1: owl"):
        assert known in text
    assert "| distance | 0.07 | `make demo` |" in text and "![Samples](samples/step-000012.png)" in text
    assert 'PFGMPipeline.from_pretrained("ada/pfgm-digits")' in text and "trust_remote_code=True" in text
    assert not [word for word in ("hf_secret", "/home/ada", "gamma") if word in str(card)]


def test_a_path_is_told_by_its_last_part_alone(pipe: PFGMPipeline, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    card = str(make_model_card(pipe, dataset=str(tmp_path / "photos")))
    assert "trained on photos" in card and str(tmp_path) not in card and "datasets" not in card


def test_what_is_unknown_is_left_out(pipe: PFGMPipeline) -> None:
    card = str(make_model_card(pipe))
    assert not [word for word in ("license", "trained on", "## Training", "## Figures", "Samples") if word in card]


def test_somebodys_own_card_stays(pipe: PFGMPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    assert save_model_card(make_model_card(pipe, license="mit"), tmp_path)  # ours is renewed
    assert "mit" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    assert not save_model_card(make_model_card(pipe), tmp_path)
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
