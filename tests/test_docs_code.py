"""The Python code of the documentation pages runs as it stands."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusers_pfgm import PFGMPipeline

ROOT = Path(__file__).parents[1]
PAGES = ["training/README.md", *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md")))]


def python_blocks(page: str) -> list[str]:
    """The Python code blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def run(code: str) -> dict[str, Any]:
    """Run code, and return its names."""
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_pages_with_code_are_tested_below() -> None:
    counts = {page: len(python_blocks(page)) for page in PAGES}
    assert {page: count for page, count in counts.items() if count} == {
        "training/README.md": 1,
        "docs/likelihoods.md": 1,
        "docs/schedulers.md": 1,
    }


def test_training_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = python_blocks("training/README.md")
    short = code.replace("range(1500)", "range(2)")
    assert short != code
    run(short)
    pipe = PFGMPipeline.from_pretrained(tmp_path / "my-model")
    assert pipe.scheduler.config.max_norm is not None and pipe.scheduler.config.sigma_knots is not None
    assert pipe(num_inference_steps=2, output_type="pt").images.shape == (1, 1, 8, 8)


def test_sampling_loop_draws_the_images_of_the_pipeline() -> None:
    (code,) = python_blocks("docs/schedulers.md")
    names = run(code)
    pipe = names["pipe"]
    pipe.set_progress_bar_config(disable=True)
    labels = [2, 3, 5, 7]
    output = pipe(4, 20, torch.Generator().manual_seed(0), class_labels=labels, output_type="pt")
    torch.testing.assert_close(names["images"], output.images, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_likelihood_editing_and_inverse_pipelines() -> None:
    (code,) = python_blocks("docs/likelihoods.md")
    names = run(code)
    images = names["images"]
    assert images.shape == (2, 1, 28, 28) and names["edited"][0].size == (28, 28)
    upper = np.stack([np.asarray(image)[:14] / 255 for image in names["completed"]])
    assert np.abs(upper - images[:, 0, :14].numpy()).mean() < 0.1
