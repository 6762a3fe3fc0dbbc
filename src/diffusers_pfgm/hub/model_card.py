"""The card of a saved model: what it is, what it learned from, how to draw from it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote, urlsplit

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..utils.atomic_file import atomic_file

CARD = "README.md"
MARK = "<!-- Written by diffusers-pfgm, which renews this card. Remove this line to keep your own words. -->"
INSTALL = "its package diffusers-pfgm is installed from its source, by: pip install ."
# What Markdown, HTML or mathematics in it may act on; underscores do so at the edges of words only.
SPECIAL = re.compile(r"""[\\`*\[\]<>|&~$#!"']|(?<![^\W_])_|_(?![^\W_])""")
PAPERS = {"PFGM": "2209.11178", "PFGM++": "2302.04265"}


def make_model_card(
    pipeline: DiffusionPipeline,
    dataset: str | None = None,
    training: Mapping[str, Any] | None = None,
    figures: Sequence[tuple[str, str, str]] = (),
    sample_grid: str | None = None,
    license: str | None = None,
    repo_id: str | None = None,
) -> ModelCard:
    """A card of what is known; the rest is left out.

    Names from outside, of classes, data sets or options, appear as they are and never act as Markdown, HTML, YAML or
    Python.

    Args:
        pipeline: a `PFGMPipeline`.
        dataset: what it was trained on, a Hub id, a path or an address, of which only the last part is shown.
        training: options of the training by name; those that name a token or a place on this machine are left out.
        figures: what was measured, the figure, and the command that prints it.
        sample_grid: path of a picture in the model's folder.
        license: of the model, as the Hub names it.
        repo_id: of the model on the Hub.
    """
    classes = pipeline.config.get("id2label")
    on_hub = dataset is not None and _is_hub_id(dataset)
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["diffusers", "pfgm", "poisson-flow", "diffusers-pfgm"],
        license=license,
        datasets=[str(dataset)] if on_hub else None,
    )
    name = (repo_id or "").split("/")[-1] or "A Poisson flow model"
    parts = [f"# {_text(name)}", _what_it_is(pipeline, None if dataset is None else strip_location(dataset))]
    if sample_grid is not None:
        parts.append(f"![Samples]({quote(sample_grid)})")
    parts.append(_how_to_draw(repo_id or "this-folder", classes))
    if classes:
        names = ", ".join(f"{number}: {_text(label)}" for number, label in classes.items())
        parts.append(f"## Classes\n\n{names}")
    if training:
        rows = [(_text(name), _code(value)) for name, value in training.items() if _may_be_told(name, value)]
        parts.append("## Training\n\n" + _table(("option", "value"), rows))
    if figures:
        rows_of_figures = [(_text(what), _text(figure), _code(command)) for what, figure, command in figures]
        parts.append("## Figures\n\n" + _table(("what", "figure", "command"), rows_of_figures))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{MARK}\n\n" + "\n\n".join(parts) + "\n")


def save_model_card(card: ModelCard, folder: str | os.PathLike[str]) -> bool:
    """Write a card into a model's folder, unless somebody's own is there; whether it was written."""
    path = Path(folder) / CARD
    if path.exists() and not is_generated_card(path):
        return False
    with atomic_file(path) as partial:
        card.save(partial)
    return True


def is_generated_card(card: Path) -> bool:
    """Whether a card exists that this package has written and nobody has claimed since."""
    return card.is_file() and MARK.encode() in card.read_bytes()


def strip_location(place: str) -> str:
    """A place without what it tells of a machine or an account: the last part of a path or address, a Hub id whole."""
    place = str(place)
    if "://" in place:
        return PurePath(urlsplit(place).path).name
    is_path = Path(place).is_absolute() or place.startswith(("~", ".")) or place.count("/") > 1 or "\\" in place
    return place.replace("\\", "/").rstrip("/").split("/")[-1] if is_path or Path(place).exists() else place


def _is_hub_id(dataset: str) -> bool:
    if strip_location(dataset) != dataset or Path(dataset).exists():
        return False
    try:
        validate_repo_id(dataset)
    except HFValidationError:
        return False
    return True


def _what_it_is(pipeline: DiffusionPipeline, dataset: str | None) -> str:
    config = pipeline.scheduler.config
    aug_dim = config.get("aug_dim")
    kind = "PFGM" if aug_dim == 1 else "PFGM++"
    paper = f"[{kind}](https://arxiv.org/abs/{PAPERS[kind]})"
    facts = [
        *_network_facts(pipeline.unet),
        ("the network predicts", _code(config.get("prediction_type"))),
        ("augmented dimensions D", "∞" if aug_dim is None or math.isinf(aug_dim) else f"{aug_dim:g}"),
    ]
    if config.get("sigma_max") is not None and config.get("sigma_min") is not None:
        facts.append(("σ = r/√D", f"from {config['sigma_max']:.5g} to {config['sigma_min']:.5g}"))
    trained = f", trained on {_text(dataset)}" if dataset else ""
    return (
        f"A Poisson flow generative model ({paper}){trained}, for "
        "[diffusers](https://github.com/huggingface/diffusers) and diffusers-pfgm.\n\n" + _table(("what", ""), facts)
    )


def _network_facts(network: Any) -> list[tuple[str, str]]:
    """What a network tells of its images and its size; one may be of any size, or no `UNet2DModel` at all."""
    config, facts = getattr(network, "config", None), []
    channels, size = getattr(config, "in_channels", None), getattr(config, "sample_size", None)
    if channels is not None:
        sizes = ["any size"] if size is None else [size, size] if isinstance(size, int) else size
        facts.append(("images", " x ".join(map(str, [channels, *sizes]))))
    count = sum(weight.numel() for weight in network.parameters()) if hasattr(network, "parameters") else 0
    if count:
        facts.append(("parameters", f"{count:,}"))
    return facts


def _how_to_draw(place: str, classes: Mapping[int, str] | None) -> str:
    label = next(iter(classes.values()), None) if classes else None
    options = "num_inference_steps=20" + ("" if label is None else f", class_labels={_python(str(label))}")
    return f"""## How to draw

```python
from diffusers_pfgm import PFGMPipeline  # {INSTALL}

pipe = PFGMPipeline.from_pretrained({_python(place)})
pipe(batch_size=4, {options}).images[0].save("sample.png")
```

Where diffusers-pfgm is installed, plain diffusers loads it too:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({_python(place)}, trust_remote_code=True)
```"""


def _may_be_told(name: str, value: Any) -> bool:
    a_place = isinstance(value, str | Path) and strip_location(str(value)) != str(value)
    return value is not None and "token" not in name and not a_place


def _python(value: str) -> str:
    """A string as a Python literal in one line, with double quotes where nothing in it needs escaping."""
    literal = repr(value).replace("`", "\\x60")  # three of them would close the block of code
    return f'"{value}"' if literal == f"'{value}'" and '"' not in value else literal


def _text(value: Any) -> str:
    """Markdown that shows a value as it is: a character reference is never taken for markup."""
    shown = "".join(each if each.isprintable() else " " for each in str(value))
    return SPECIAL.sub(lambda found: f"&#{ord(found[0])};", shown)


def _code(value: Any) -> str:
    """Markdown that shows a value as code, in a table too."""
    plain = str(value).isprintable() and str(value).strip() and not set("`|\\") & set(str(value))
    return f"`{value}`" if plain else f"<code>{_text(value)}</code>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
