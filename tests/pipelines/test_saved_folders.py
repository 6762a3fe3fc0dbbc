"""Folders that earlier code has saved keep loading, and draw the images that they drew then."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from diffusers_pfgm import (
    PFGMEditingPipeline,
    PFGMInversePipeline,
    PFGMLikelihoodPipeline,
    PFGMPipeline,
    PoissonFlowScheduler,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
FOLDER = FIXTURES / "saved-0.1.0"


@pytest.mark.parametrize("kind", [PFGMPipeline, PFGMEditingPipeline, PFGMInversePipeline, PFGMLikelihoodPipeline])
def test_every_pipeline_loads_it(kind: type[DiffusionPipeline]) -> None:
    pipe = kind.from_pretrained(FOLDER)
    assert type(pipe) is kind and type(pipe.scheduler) is PoissonFlowScheduler


def test_images_are_those_of_the_version_that_saved_the_folder(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "copy")
    plain = DiffusionPipeline.from_pretrained(tmp_path / "copy", trust_remote_code=True)
    expected = np.load(FIXTURES / "saved-0.1.0-images.npy")
    for pipe in (PFGMPipeline.from_pretrained(FOLDER), plain):
        pipe.set_progress_bar_config(disable=True)
        images = pipe(3, 6, torch.Generator().manual_seed(0), output_type="np").images
        # The same bits on the machine that drew them; another processor may sum in another order.
        assert np.abs(images - expected).max() < 1e-5
