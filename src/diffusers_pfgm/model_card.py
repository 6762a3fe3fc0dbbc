"""The card of a saved model: what it is, what it learned from, how to draw from it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData

MARK = "<!-- Written by diffusers-pfgm, which renews this card. Remove this line to keep your own words. -->"
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

    Args:
        pipeline: a `PFGMPipeline`.
        dataset: what it was trained on, a Hub id or a path, of which only the last part is shown.
        training: options of the training by name; those that name a token or a place on this machine are left out.
        figures: what was measured, the figure, and the command that prints it.
        sample_grid: path of a picture in the model's folder.
        license: of the model, as the Hub names it.
        repo_id: of the model on the Hub.
    """
    classes = pipeline.config.get("id2label")
    on_hub = dataset is not None and not Path(dataset).exists() and dataset.count("/") <= 1
    shown = None if dataset is None else dataset if on_hub else Path(dataset).name
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["diffusers", "pfgm", "poisson-flow", "diffusers-pfgm"],
        license=license,
        datasets=[str(dataset)] if on_hub else None,
    )
    name = (repo_id or "").split("/")[-1] or "A Poisson flow model"
    parts = [f"# {name}", _what_it_is(pipeline, shown)]
    if sample_grid is not None:
        parts.append(f"![Samples]({sample_grid})")
    parts.append(_how_to_draw(repo_id or "this-folder", classes))
    if classes:
        names = ", ".join(f"{number}: {label}" for number, label in classes.items())
        parts.append(f"## Classes\n\n{names}")
    if training:
        rows = [(name, f"`{value}`") for name, value in training.items() if _may_be_told(name, value)]
        parts.append("## Training\n\n" + _table(("option", "value"), rows))
    if figures:
        rows_of_figures = [(what, figure, f"`{command}`") for what, figure, command in figures]
        parts.append("## Figures\n\n" + _table(("what", "figure", "command"), rows_of_figures))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{MARK}\n\n" + "\n\n".join(parts) + "\n")


def save_model_card(card: ModelCard, folder: str | os.PathLike[str]) -> bool:
    """Write a card into a model's folder, unless somebody's own is there; whether it was written."""
    path = Path(folder) / "README.md"
    if path.exists() and MARK not in path.read_text(encoding="utf-8"):
        return False
    partial = path.with_suffix(".partial")
    card.save(partial)
    partial.replace(path)
    return True


def _what_it_is(pipeline: DiffusionPipeline, dataset: str | None) -> str:
    unet, config = pipeline.unet, pipeline.scheduler.config
    aug_dim = config.get("aug_dim")
    kind = "PFGM" if aug_dim == 1 else "PFGM++"
    paper = f"[{kind}](https://arxiv.org/abs/{PAPERS[kind]})"
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    facts = [
        ("images", f"{unet.config.in_channels} x {height} x {width}"),
        ("parameters", f"{sum(weight.numel() for weight in unet.parameters()):,}"),
        ("the network predicts", f"`{config.get('prediction_type')}`"),
        ("augmented dimensions D", "∞" if aug_dim is None or math.isinf(aug_dim) else f"{aug_dim:g}"),
    ]
    if config.get("sigma_max") is not None:
        facts.append(("σ = r/√D", f"from {config['sigma_max']:.5g} to {config['sigma_min']:.5g}"))
    trained = "" if dataset is None else f", trained on {dataset}"
    return (
        f"A Poisson flow generative model ({paper}){trained}, for "
        "[diffusers](https://github.com/huggingface/diffusers) and diffusers-pfgm.\n\n" + _table(("what", ""), facts)
    )


def _how_to_draw(place: str, classes: Mapping[int, str] | None) -> str:
    label = next(iter(classes.values()), None) if classes else None
    options = "num_inference_steps=20" + ("" if label is None else f', class_labels="{label}"')
    return f"""## How to draw

```python
from diffusers_pfgm import PFGMPipeline  # pip install diffusers-pfgm

pipe = PFGMPipeline.from_pretrained("{place}")
pipe(batch_size=4, {options}).images[0].save("sample.png")
```

Where diffusers-pfgm is installed, plain diffusers loads it too:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{place}", trust_remote_code=True)
```"""


def _may_be_told(name: str, value: Any) -> bool:
    a_place = isinstance(value, str | Path) and Path(value).is_absolute()
    return value is not None and "token" not in name and not a_place


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
