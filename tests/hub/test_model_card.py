"""A model card has all public information and nothing private, and does not overwrite a card of the user."""

import ast
import html
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from huggingface_hub import ModelCard

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.hub.model_card import make_model_card, save_model_card
from tests.networks import make_tiny_pipeline


@pytest.fixture
def pipe() -> PFGMPipeline:
    return make_tiny_pipeline()


def test_a_card_has_all_public_information(pipe: PFGMPipeline) -> None:
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
    for fact in ("# pfgm-digits", "41,682", "1 x 8 x 8", "`field`", "| learning_rate | `0.0001` |", "0: cat, 1: owl"):
        assert fact in text
    assert "| distance | 0.07 | `make demo` |" in text and "![Samples](samples/step-000012.png)" in text
    assert 'PFGMPipeline.from_pretrained("ada/pfgm-digits")' in text and "trust_remote_code=True" in text
    assert not [word for word in ("hf_secret", "/home/ada", "gamma") if word in str(card)]


def test_a_card_only_has_the_last_part_of_a_path(pipe: PFGMPipeline, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    card = str(make_model_card(pipe, dataset=str(tmp_path / "photos")))
    assert "trained on photos" in card and str(tmp_path) not in card and "datasets" not in card


def test_sections_without_information_are_left_out(pipe: PFGMPipeline) -> None:
    card = str(make_model_card(pipe))
    assert not [word for word in ("license", "trained on", "## Training", "## Results", "Samples") if word in card]


def test_a_card_of_the_user_is_not_overwritten(pipe: PFGMPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    assert save_model_card(make_model_card(pipe, license="mit"), tmp_path)  # a generated card is overwritten
    assert "mit" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    assert not save_model_card(make_model_card(pipe), tmp_path)
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


HOSTILE = (
    'x").images; __import__("os").system("echo")\n```\n<script>| a `b` | "c" \'d\' \\ \u202e _e_ ![i](j) $k$ \udcff'
)


def snippets(card: str) -> list[ast.Module]:
    return [ast.parse(each.split("```")[0]) for each in card.split("```python\n")[1:]]


def strings(code: ast.Module, keyword: str) -> list[str]:
    return [
        word.value.value
        for call in ast.walk(code)
        if isinstance(call, ast.Call)
        for word in call.keywords
        if word.arg == keyword and isinstance(word.value, ast.Constant)
    ]


def test_names_never_become_code_or_markup(pipe: PFGMPipeline) -> None:
    pipe.register_to_config(id2label={0: HOSTILE, 1: "plain_name"})
    card = make_model_card(
        pipe,
        dataset=f"ada/{HOSTILE}",
        training={HOSTILE: HOSTILE, "lr_scheduler": HOSTILE},
        figures=[(HOSTILE, HOSTILE, HOSTILE), ("distance", "0.07", "make 'a|b'")],
        sample_grid="samples/a) ![x](y).png",
        license=f"mit\n---\nfoo: {HOSTILE[:40]}\n---\n",
        repo_id='ada/a"); print("b',
    )
    plain = str(make_model_card(pipe, dataset="ylecun/mnist"))
    first, second = snippets(card.content)
    calls = [ast.unparse(node.func) for node in ast.walk(first) if isinstance(node, ast.Call)]
    assert len(calls) == 3 and {"PFGMPipeline.from_pretrained", "pipe"} <= set(calls)
    assert not [node for node in ast.walk(first) if isinstance(node, ast.Name) and node.id.startswith("__")]
    assert strings(first, "class_labels") == [HOSTILE]  # the code names exactly this class
    for code in (first, second):
        assert 'ada/a"); print("b' in [node.value for node in ast.walk(code) if isinstance(node, ast.Constant)]
    assert card.content.count("```") == 4 and "<script>" not in "".join(card.content.split("```")[::2])
    assert set(ModelCard(card.content).data.to_dict()) == {"library_name", "license", "pipeline_tag", "tags"}
    assert "datasets:\n- ylecun/mnist" in plain and "1: plain_name" in plain
    rows = [line for line in card.text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {3, 4}
    card.text.encode("utf-8", "strict")


def test_the_rendered_card_shows_names_literally(pipe: PFGMPipeline) -> None:
    markdown = pytest.importorskip("markdown_it").MarkdownIt("gfm-like", {"linkify": False})
    name = '<b>a</b> `b|c` *d* _e_ [f](g) \\| & "h"'
    pipe.register_to_config(id2label={0: name})
    card = make_model_card(pipe, training={"option": name, "plain": "a_b"}, figures=[(name, "1", name)], repo_id="a/b")
    page = markdown.render(card.text)
    shown = html.escape(name, quote=False).replace('"', "&quot;")
    assert f"<p>0: {shown}</p>" in page
    assert f"<td><code>{shown}</code></td>" in page and f"<td>{shown}</td>" in page and "<code>a_b</code>" in page


def test_a_network_of_any_size_or_kind_has_a_card(tmp_path: Path) -> None:
    for size, shown in ((None, "1 x any size"), ((4, 8), "1 x 4 x 8"), ([4, 8], "1 x 4 x 8"), (8, "1 x 8 x 8")):
        pipe = make_tiny_pipeline()
        pipe.unet.register_to_config(sample_size=size)
        assert f"| images | {shown} |" in str(make_model_card(pipe))
    pipe.unet.register_to_config(sample_size=None)
    pipe.save_pretrained(tmp_path)
    assert "any size" in (tmp_path / "README.md").read_text()
    field = PFGMPipeline(ChargeField(torch.zeros(3, 2)), PoissonFlowScheduler())
    assert "| images | 2 |" in str(make_model_card(field)) and "parameters" not in str(make_model_card(field))
    plain = PFGMPipeline(torch.nn.Linear(2, 2), DDPMScheduler())
    assert "| parameters | 6 |" in str(make_model_card(plain))


def test_a_card_only_has_the_last_part_of_any_location(
    pipe: PFGMPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "private" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for location, shown in (
        ("private/photos", "photos"),
        ("private/photos/", "photos"),
        ("../ada/photos", "photos"),
        ("/home/ada/photos", "photos"),
        ("C:\\Users\\ada\\photos", "photos"),
        ("https://ada:hf_secret@example.org/ada/photos.parquet?token=hf_secret", "photos.parquet"),
    ):
        card = str(make_model_card(pipe, dataset=location, training={"location": location}))
        assert f"trained on {shown}" in card and "datasets:" not in card
        assert not [word for word in ("ada", "hf_secret", "private", "location") if word in card], location


def test_a_card_has_an_install_command_that_works(pipe: PFGMPipeline) -> None:
    assert "pip install diffusers-pfgm" not in str(make_model_card(pipe))
    assert "pip install ." in str(make_model_card(pipe))


def test_a_card_that_is_not_utf8_is_not_overwritten(pipe: PFGMPipeline, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes("Modèle".encode("latin-1"))
    (tmp_path / "README.partial").write_text("mine")
    assert not save_model_card(make_model_card(pipe), tmp_path)
    (tmp_path / "README.md").unlink()
    assert save_model_card(make_model_card(pipe), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "README.partial"]
