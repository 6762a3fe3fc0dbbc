"""Every argument `generator` refuses a generator of another library, in one line that states what to pass."""

from typing import Any

import numpy as np
import pytest
import torch

from diffusers_pfgm import (
    Inpainting,
    Parameterization,
    PerturbationObjective,
    PFGMInversePipeline,
    PFGMLikelihoodPipeline,
    PoissonFlow,
    PoissonKernel,
    fit_sigmas,
    perturb,
    recommend_hyperparameters,
)
from tests.networks import make_tiny_pipeline, make_tiny_unet


@pytest.mark.parametrize(
    "generator",
    [np.random.default_rng(0), [np.random.default_rng(0)], np.random.RandomState(0), 0],
    ids=["Generator", "list", "RandomState", "seed"],
)
def test_a_generator_of_another_library_is_explained(generator: Any) -> None:
    pipe, image = make_tiny_pipeline(), torch.zeros(1, 1, 8, 8)
    flow = PoissonFlow(pipe.unet, pipe.scheduler)
    perturbation = PerturbationObjective(Parameterization("epsilon", sigma_data=0.5), 4.0)
    restore = PFGMInversePipeline(**pipe.components)
    for call in (
        lambda: PoissonKernel().sample((1, 3), generator=generator),
        lambda: pipe.scheduler.sample_prior((1, 3), generator),
        lambda: pipe(1, 2, generator),
        lambda: flow.sample((1, 1, 8, 8), 2, generator),
        lambda: flow.log_prob(image, 2, "hutchinson", generator=generator),
        lambda: fit_sigmas(pipe.unet, pipe.scheduler, (1, 8, 8), generator, 1),
        lambda: perturb(torch.zeros(1, 3), recommend_hyperparameters(1.0, 3), generator=generator),
        lambda: restore(image, Inpainting(torch.ones(1, 1)), generator=generator),
        lambda: PFGMLikelihoodPipeline(**pipe.components)(image, generator=generator),
        lambda: perturbation(make_tiny_unet(1, 1), image, generator),
    ):
        with pytest.raises(
            ValueError, match=r"`generator` must be a torch\.Generator, a list of one for each"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)
