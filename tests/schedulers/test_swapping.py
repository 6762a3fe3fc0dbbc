"""In diffusers' own pipelines the scheduler gives the images of diffusers' schedulers that are mathematically equal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from diffusers_pfgm import PoissonFlowScheduler
from tests.schedulers import tiny_pipelines
from tests.schedulers.tiny_pipelines import PIPELINES, SCALED_LINEAR, make

FIRST = {"solver_order": 1, "use_corrector": False}
SECOND = {"solver_order": 2, "use_corrector": False}
EQUALS = {
    "DDIM": (DDIMScheduler(**SCALED_LINEAR, clip_sample=False, steps_offset=1), FIRST),
    "DDIM to its first timestep": (
        DDIMScheduler(**SCALED_LINEAR, clip_sample=False, steps_offset=1, set_alpha_to_one=False),
        FIRST,
    ),
    "DDIM from zero SNR": (
        DDIMScheduler(
            **SCALED_LINEAR,
            clip_sample=False,
            timestep_spacing="trailing",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
        ),
        FIRST,
    ),
    "Euler": (
        EulerDiscreteScheduler(**SCALED_LINEAR, timestep_spacing="leading", steps_offset=1),
        {"solver": "euler"},
    ),
    "Heun": (HeunDiscreteScheduler(**SCALED_LINEAR, timestep_spacing="leading", steps_offset=1), {"solver": "heun"}),
    "DPM-Solver++": (
        DPMSolverMultistepScheduler(**SCALED_LINEAR, solver_type="heun", timestep_spacing="trailing"),
        SECOND,
    ),
    "DPM-Solver++ by its default": (DPMSolverMultistepScheduler(**SCALED_LINEAR, solver_type="heun"), SECOND),
    "DPM-Solver++ 2M Karras": (
        DPMSolverMultistepScheduler(**SCALED_LINEAR, solver_type="heun", use_karras_sigmas=True),
        SECOND,
    ),
    "DPM-Solver++ to its first timestep": (
        DPMSolverMultistepScheduler(
            **SCALED_LINEAR,
            solver_type="heun",
            timestep_spacing="trailing",
            final_sigmas_type="sigma_min",
            lower_order_final=False,  # by default it lowers the order of the last step below 15 steps
        ),
        SECOND,
    ),
    "DPM-Solver++ of one step": (DPMSolverSinglestepScheduler(**SCALED_LINEAR, solver_order=1), FIRST),
    "Heun Karras": (
        HeunDiscreteScheduler(**SCALED_LINEAR, use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1),
        {"solver": "heun"},
    ),
    "UniPC Karras": (
        UniPCMultistepScheduler(
            **SCALED_LINEAR, solver_order=1, use_karras_sigmas=True, disable_corrector=list(range(20))
        ),
        FIRST,
    ),
    "DPM-Solver++ and v": (
        DPMSolverMultistepScheduler(
            **SCALED_LINEAR, solver_type="heun", timestep_spacing="trailing", prediction_type="v_prediction"
        ),
        SECOND,
    ),
}


def both(name: str, theirs: Any, options: dict[str, Any], steps: int, folder: Path) -> tuple[torch.Tensor, ...]:
    """The images of our scheduler and theirs in one pipeline; both must call the network at the same timesteps."""
    pipe = make(name, theirs, folder)
    ours = PoissonFlowScheduler.from_config(theirs.config, **options)
    results = []
    for pipe.scheduler in (ours, theirs):
        results.append(tiny_pipelines.run(name, pipe, steps))
    assert torch.allclose(torch.as_tensor(theirs.timesteps).double(), ours.timesteps.double(), rtol=1e-7)
    return tuple(results)


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("name", EQUALS)
def test_stable_diffusion_images_are_equal(name: str, steps: int, tmp_path: Path) -> None:
    actual, expected = both("StableDiffusion", *EQUALS[name], steps, tmp_path)
    # Measured: 3e-7 to 2e-6, the rounding error of float32 over the run.
    assert (actual - expected).norm() < 1e-5 * expected.norm()


def test_euler_from_zero_snr(tmp_path: Path) -> None:
    theirs = EulerDiscreteScheduler(
        **SCALED_LINEAR, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    actual, expected = both("StableDiffusion", theirs, {"solver": "euler"}, 8, tmp_path)
    # Their state begins at the scale σ = 4096, so rounding to float32 costs three more digits of x̂.
    assert (actual - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("name", ["DDIM", "DPM-Solver++ 2M Karras", "DPM-Solver++ of one step", "Heun Karras"])
def test_image_to_image_begins_at_the_same_noise(name: str, tmp_path: Path) -> None:
    # With Karras' spacing the timesteps are rounded, so σ cannot be computed from them.
    actual, expected = both("StableDiffusionImg2Img", *EQUALS[name], 12, tmp_path)
    assert (actual - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("name", PIPELINES)
def test_images_of_every_pipeline_equal_those_with_ddim(name: str, tmp_path: Path) -> None:
    offset = 1 if name.startswith("Stable") else 0
    theirs = DDIMScheduler(**SCALED_LINEAR, clip_sample=False, steps_offset=offset)
    actual, expected = both(name, theirs, FIRST, 6, tmp_path)
    assert (actual - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["StableDiffusion", "DDIM"])
def test_the_default_solver_is_closer_to_many_steps_than_ddim(name: str, tmp_path: Path) -> None:
    theirs = DDIMScheduler(**SCALED_LINEAR, clip_sample=False, steps_offset=1, timestep_spacing="trailing")
    ours = PoissonFlowScheduler.from_config(theirs.config)
    pipe = make(name, ours, tmp_path)
    many = tiny_pipelines.run(name, pipe, 100)
    errors = []
    for pipe.scheduler in (theirs, ours):
        errors.append((tiny_pipelines.run(name, pipe, 10) - many).norm())
    assert errors[1] < errors[0] / 2
