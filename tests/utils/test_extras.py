"""The error for missing packages names them and the extra that installs them."""

import re
from pathlib import Path

import pytest

from diffusers_pfgm.utils.extras import require_extra
from tests.warm_python import WarmPython

ROOT = Path(__file__).parents[2]


def test_installed_packages_raise_nothing() -> None:
    require_extra("training", "torch", "diffusers")


def test_all_missing_packages_are_named() -> None:
    message = r"nothing_a, nothing_b must be .* extra `training`: pip install '\.\[training\]' in a checkout of diff"
    with pytest.raises(ModuleNotFoundError, match=message) as caught:
        require_extra("training", "torch", "nothing_a", "nothing_b")
    assert caught.value.name == "nothing_a"


CASES = """
import runpy, sys
import torch
assert not [name for name in sys.modules if name.startswith("diffusers_pfgm")]
for code, package, extra in {cases!r}:
    hidden = {{name: module for name, module in sys.modules.items() if name.split(".")[0] == package}}
    sys.modules.update(dict.fromkeys([package, *hidden]))  # an import of one of these raises
    try:
        exec(code)
    except ModuleNotFoundError as error:
        expected = f"Install the extra `{{extra}}`: pip install '.[{{extra}}]' in a checkout of diffusers-pfgm."
        assert package in str(error) and expected in str(error), (code, package, str(error))
    else:
        raise AssertionError((code, package))
    del sys.modules[package]
    sys.modules.update(hidden)
"""


def test_every_use_names_its_extra(plain_python: WarmPython) -> None:
    distance = "from diffusers_pfgm.metrics import sliced_wasserstein as f; f(torch.zeros(2, 1), torch.zeros(2, 1))"
    cases = [
        ("import diffusers_pfgm.training.data.source", "datasets", "training"),
        ("import diffusers_pfgm.training.run.checkpoints", "accelerate", "training"),
        ("import diffusers_pfgm.training.run.output_folder", "filelock", "training"),
        ("import diffusers_pfgm.training.data.field_batches", "psutil", "training"),
        ("import diffusers_pfgm.plots.training_curves", "matplotlib", "training"),
        ("import diffusers_pfgm.plots", "matplotlib", "training"),
        (distance, "ot", "training"),
    ]
    for script, package in (("train_pfgm", "accelerate"), ("train_pfgm", "tqdm"), ("evaluate_likelihood", "datasets")):
        cases.append((f"runpy.run_path({str(ROOT / 'training' / script) + '.py'!r})", package, "training"))
    examples = sorted((ROOT / "pipelines_examples").glob("*/*.py"))
    for path in examples:
        for package in ("sklearn", "matplotlib", "datasets"):
            if re.search(rf"^(from|import) {package}\b", path.read_text(), re.MULTILINE):
                cases.append((f"runpy.run_path({str(path)!r})", package, "examples"))
    process = plain_python.run("-c", CASES.format(cases=cases))
    assert process.returncode == 0, process.stderr
