"""The model card of a saved model: a description, its training, and code that draws samples."""

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
# Marks cards that this package may overwrite. The text is in published cards, so it must not change.
MARK = "<!-- Written by diffusers-pfgm, which renews this card. Remove this line to keep your own words. -->"
INSTALL = "its package diffusers-pfgm is installed from its source, by: pip install ."
# Characters with a meaning in Markdown, HTML or mathematics; underscores have one only at the edges of words.
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
    """Make a model card. Sections without information are left out.

    Names of classes, data sets and options are escaped, so that they are shown literally and never act as Markdown,
    HTML, YAML or Python.

    Args:
        pipeline: a `PFGMPipeline`.
        dataset: the training data: a Hub id, or a path or URL, of which only the last part is shown.
        training: values of the training options by name. Tokens and paths on this machine are left out.
        figures: results, each as (name, value, the command that prints it).
        sample_grid: path of an image of samples in the model's folder.
        license: the Hub's identifier of the model's license.
        repo_id: the model's repository on the Hub.
    """
    classes = pipeline.config.get("id2label")
    is_on_hub = dataset is not None and _is_hub_id(dataset)
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["diffusers", "pfgm", "poisson-flow", "diffusers-pfgm"],
        license=license,
        datasets=[str(dataset)] if is_on_hub else None,
    )
    name = (repo_id or "").split("/")[-1] or "A Poisson flow model"
    parts = [f"# {_text(name)}", _description(pipeline, None if dataset is None else strip_location(dataset))]
    if sample_grid is not None:
        parts.append(f"![Samples]({quote(sample_grid)})")
    levels = pipeline.scheduler.config.get("consistency_sigmas")
    parts.append(_usage(repo_id or "this-folder", classes, 20 if levels is None else min(2, len(levels))))
    if classes:
        names = ", ".join(f"{number}: {_text(label)}" for number, label in classes.items())
        parts.append(f"## Classes\n\n{names}")
    if training:
        rows = [(_text(name), _code(value)) for name, value in training.items() if _is_public(name, value)]
        parts.append("## Training\n\n" + _table(("option", "value"), rows))
    if figures:
        result_rows = [(_text(label), _text(value), _code(command)) for label, value, command in figures]
        parts.append("## Results\n\n" + _table(("result", "value", "command"), result_rows))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{MARK}\n\n" + "\n\n".join(parts) + "\n")


def save_model_card(card: ModelCard, folder: str | os.PathLike[str]) -> bool:
    """Write a card into a model's folder, unless the folder has a card that is not generated.

    Returns:
        Whether the card was written.
    """
    path = Path(folder) / CARD
    if path.exists() and not is_generated_card(path):
        return False
    with atomic_file(path) as partial:
        card.save(partial)
    return True


def is_generated_card(card: Path) -> bool:
    """Whether a card exists, was written by this package, and still has the mark that says so."""
    return card.is_file() and MARK.encode() in card.read_bytes()


def strip_location(location: str) -> str:
    """Return the last part of a path or URL, without names of a machine or an account; a Hub id is unchanged."""
    location = str(location)
    if "://" in location:
        return PurePath(urlsplit(location).path).name
    is_path = Path(location).is_absolute() or location.startswith(("~", ".")) or location.count("/") > 1
    is_path = is_path or "\\" in location or Path(location).exists()
    return location.replace("\\", "/").rstrip("/").split("/")[-1] if is_path else location


def _is_hub_id(dataset: str) -> bool:
    if strip_location(dataset) != dataset or Path(dataset).exists():
        return False
    try:
        validate_repo_id(dataset)
    except HFValidationError:
        return False
    return True


def _description(pipeline: DiffusionPipeline, dataset: str | None) -> str:
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
    if config.get("mean_square_std") is not None and aug_dim is not None:
        statistics = f"mean {config['data_mean']:g}, standard deviation {config['sigma_data']:g}"
        facts.append(("data", f"{statistics}, standard deviation of mean squares {config['mean_square_std']:g}"))
    if config.get("consistency_boundary") is not None:
        levels = ", ".join(f"{sigma:.3g}" for sigma in config["consistency_sigmas"])
        facts.append(("consistency model", f"one call at each of the first σ = {levels}"))
    if config.get("consistency_guidance") is not None:
        facts.append(("learned guidance scale", f"{config['consistency_guidance']:g}"))
    trained = f", trained on {_text(dataset)}" if dataset else ""
    return (
        f"A Poisson flow generative model ({paper}){trained}, for "
        "[diffusers](https://github.com/huggingface/diffusers) and diffusers-pfgm.\n\n"
        + _table(("property", "value"), facts)
    )


def _network_facts(network: Any) -> list[tuple[str, str]]:
    """The shape of a network's images and its number of parameters, as far as the network has them."""
    config = getattr(network, "config", None)
    channels = getattr(config, "in_channels", None)
    size = getattr(config, "sample_size", None)
    facts: list[tuple[str, str]] = []
    if channels is not None:
        sizes = ["any size"] if size is None else [size, size] if isinstance(size, int) else size
        facts.append(("images", " x ".join(map(str, [channels, *sizes]))))
    count = sum(weight.numel() for weight in network.parameters()) if hasattr(network, "parameters") else 0
    if count:
        facts.append(("parameters", f"{count:,}"))
    return facts


def _usage(location: str, classes: Mapping[int, str] | None, num_inference_steps: int) -> str:
    label = next(iter(classes.values()), None) if classes else None
    options = f"num_inference_steps={num_inference_steps}" + (
        "" if label is None else f", class_labels={_python(str(label))}"
    )
    return f"""## Usage

```python
from diffusers_pfgm import PFGMPipeline  # {INSTALL}

pipe = PFGMPipeline.from_pretrained({_python(location)})
pipe(batch_size=4, {options}).images[0].save("sample.png")
```

If diffusers-pfgm is installed, plain diffusers loads it too:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({_python(location)}, trust_remote_code=True)
```"""


def _is_public(name: str, value: Any) -> bool:
    is_location = isinstance(value, str | Path) and strip_location(str(value)) != str(value)
    return value is not None and "token" not in name and not is_location


def _python(value: str) -> str:
    """Return a string as a Python literal in one line, in double quotes if nothing in it needs escaping."""
    literal = repr(value).replace("`", "\\x60")  # three backticks would close the code block
    return f'"{value}"' if literal == f"'{value}'" and '"' not in value else literal


def _text(value: Any) -> str:
    """Return Markdown that shows a value literally: special characters become character references."""
    shown = "".join(each if each.isprintable() else " " for each in str(value))
    return SPECIAL.sub(lambda match: f"&#{ord(match[0])};", shown)


def _code(value: Any) -> str:
    """Return Markdown that shows a value as code, also in a table."""
    is_plain = str(value).isprintable() and str(value).strip() and not set("`|\\") & set(str(value))
    return f"`{value}`" if is_plain else f"<code>{_text(value)}</code>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
