"""Class labels reach the network, and guidance combines posterior means in one network call."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diffusers_pfgm import Parameterization, PFGMPipeline, PoissonFlowScheduler, posterior_mean
from diffusers_pfgm.physics.denoiser import Denoiser
from diffusers_pfgm.pipelines.class_conditioning import ClassLabels, GuidedModel
from tests.device_reads import DeviceReads
from tests.networks import ExactNetwork, seeded

NAMES = {0: "left", 1: "right", 2: "middle"}
CENTRES = (-0.8, 0.8, 0.0)


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    return torch.arange(12) % 3


@pytest.fixture(scope="module")
def charges(labels: torch.Tensor) -> torch.Tensor:
    """Twelve images in three classes, each around a different grey value."""
    noise = 0.1 * torch.randn(12, 1, 4, 4, generator=seeded())
    return torch.tensor(CENTRES)[labels].view(-1, 1, 1, 1) + noise


def pipeline(
    charges: torch.Tensor, labels: torch.Tensor, prediction_type: str = "field", names: Any = NAMES, **options: Any
) -> PFGMPipeline:
    scheduler = PoissonFlowScheduler(prediction_type=prediction_type, **options)
    network = ExactNetwork(charges, scheduler.parameterization, scheduler.config.aug_dim, labels)
    pipe = PFGMPipeline(network, scheduler, names)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def means(pipe: PFGMPipeline, **options: Any) -> torch.Tensor:
    images = pipe(output_type="pt", generator=seeded(), **options).images * 2 - 1
    return images.flatten(1).mean(1)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("prediction_type", ["field", "epsilon"])
def test_each_image_is_of_its_class(
    charges: torch.Tensor, labels: torch.Tensor, prediction_type: str, guidance_scale: float
) -> None:
    pipe = pipeline(charges, labels, prediction_type)
    labels_requested = [0, 1, 2, 2, 1, 0]
    image_means = means(pipe, class_labels=labels_requested, guidance_scale=guidance_scale, num_inference_steps=12)
    assert torch.allclose(image_means, torch.tensor(CENTRES)[labels_requested], atol=0.2)
    # One call a step, of twice the batch under guidance.
    assert [shape[0] for shape, _ in pipe.unet.calls] == [6 * (1 + (guidance_scale != 1))] * 12
    by_name = means(
        pipe, class_labels=[NAMES[i] for i in labels_requested], guidance_scale=guidance_scale, num_inference_steps=12
    )
    assert torch.equal(image_means, by_name)


def test_without_labels_all_classes_are_drawn(charges: torch.Tensor, labels: torch.Tensor) -> None:
    image_means = means(pipeline(charges, labels), batch_size=64, num_inference_steps=12)
    for centre in CENTRES:
        assert ((image_means - centre).abs() < 0.2).any()


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("labels_given", ["right", 1, [1], torch.tensor([1]), torch.tensor(1), np.int64(1)])
def test_one_label_is_for_all(
    charges: torch.Tensor, labels: torch.Tensor, labels_given: Any, batch_size: int | None
) -> None:
    image_means = means(
        pipeline(charges, labels), class_labels=labels_given, batch_size=batch_size, num_inference_steps=8
    )
    assert len(image_means) == (batch_size or 1) and torch.allclose(image_means, torch.tensor(0.8), atol=0.2)


def test_the_batch_is_as_large_as_the_labels(charges: torch.Tensor, labels: torch.Tensor) -> None:
    pipe = pipeline(charges, labels)
    assert len(means(pipe, class_labels=[0, 1, 2, 0], num_inference_steps=2)) == 4
    assert len(means(pipe, class_labels=2, num_inference_steps=2)) == 1
    assert len(means(pipe, class_labels=torch.tensor([2, 1]), num_inference_steps=2)) == 2


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
@pytest.mark.parametrize(
    "parameterization",
    [
        Parameterization("field"),
        Parameterization("sample"),
        Parameterization("epsilon", sigma_data=0.5),
        Parameterization("v_prediction", train_sigmas=(0.01, 0.1, 1.0, 10.0)),
    ],
    ids=lambda parameterization: parameterization.prediction_type,
)
@pytest.mark.parametrize("sigma", [0.2, 8.0])
def test_guidance_combines_posterior_means(parameterization: Parameterization, scale: float, sigma: float) -> None:
    charges = torch.randn(9, 1, 3, 3, generator=seeded(), dtype=torch.float64)
    x = torch.randn(4, 1, 3, 3, generator=seeded(1), dtype=torch.float64) * (1 + sigma)
    conditional, unconditional = posterior_mean(x, sigma, charges[:4], 3.0), posterior_mean(x, sigma, charges, 3.0)
    outputs = [parameterization.target(denoised, x, sigma) for denoised in (conditional, unconditional)]

    class Both(torch.nn.Module):
        dtype = torch.float64

        def forward(self, sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
            return (torch.cat(outputs),)

    label = torch.tensor(parameterization.c_noise(sigma), dtype=torch.float64)
    guided = GuidedModel(Both(), parameterization, torch.zeros(4), 1, scale)(parameterization.c_in(sigma) * x, label)[0]
    denoised = parameterization.denoised(guided, x, sigma)
    assert torch.allclose(denoised, unconditional + scale * (conditional - unconditional), atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"beta_schedule": "linear"}, {"sigma_data": 0.5}])
@pytest.mark.parametrize("prediction_type", ["field", "epsilon"])
def test_a_guided_step_reads_nothing_back(prediction_type: str, options: dict[str, Any]) -> None:
    scheduler = PoissonFlowScheduler(prediction_type=prediction_type, **options)
    scheduler.set_timesteps(3)

    class Network(torch.nn.Module):
        dtype = torch.float32

        def forward(self, sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
            return (torch.cat([sample, -sample.abs()], dim=1)[:, : scheduler.parameterization.output_channels(1)],)

    model = GuidedModel(Network(), scheduler.parameterization, torch.zeros(2, dtype=torch.int64), 1, 2.0)
    x = torch.ones(2, 1, 4, 4)
    for t in scheduler.timesteps:
        with DeviceReads() as mode:
            x = scheduler.step(model(scheduler.scale_model_input(x, t), t)[0], t, x).prev_sample
        assert mode.count == 0


def test_adaptive_runs_are_conditioned_too(charges: torch.Tensor, labels: torch.Tensor) -> None:
    pipe = pipeline(charges, labels)
    output = pipe(class_labels=[0, 1, 2], guidance_scale=1.5, tolerance=1e-3, generator=seeded(), output_type="pt")
    image_means = (output.images * 2 - 1).flatten(1).mean(1)
    assert torch.allclose(image_means, torch.tensor(CENTRES), atol=0.2) and output.nfe == len(pipe.unet.calls)


def test_names_survive_a_saved_configuration() -> None:
    # JSON turns the numbers into strings.
    classes = ClassLabels(4, {str(number): name for number, name in NAMES.items()})
    assert classes.numbers(["middle", 0], 2) == [2, 0] and classes.null_class == 3


def test_a_name_of_two_classes_is_refused() -> None:
    classes = ClassLabels(3, {0: "crane", 1: "crane", 2: "owl"})
    assert classes.numbers(["owl", 1], 2) == [2, 1]
    with pytest.raises(ValueError, match=r"has 'crane', but classes \[0, 1\] have this name. Pass a number"):
        classes.numbers(["crane"], 1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({1: "left", 2: "right"}, r"must map the numbers 0, 1, 2, \.\.\. to .*, but has the keys \[1, 2\]"),
        ({0: "left", 2: "right"}, r"but has the keys \[0, 2\]"),
        ({"left": 0, "right": 1}, r"but has the keys \['left', 'right'\]"),
        (dict(enumerate("abcde")), "must name the 4 classes of the network .*, but has 5 names"),
        (dict(enumerate("ab")), "or 3 if the last one is the null class, but has 2 names"),
    ],
)
def test_names_that_are_not_those_of_the_embeddings_are_refused(
    charges: torch.Tensor, labels: torch.Tensor, names: dict[int, str], message: str
) -> None:
    with pytest.raises(ValueError, match=f"`id2label` .*{message}"):
        pipeline(charges, labels, names=names)


def test_a_list_of_names_is_refused(charges: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="`id2label` must be a dictionary of names by number, but is a list"):
        pipeline(charges, labels, names=["left", "middle", "right"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 2.0}, "`guidance_scale` = 2.0 needs `class_labels`"),
        ({"class_labels": 3}, "`class_labels` must be whole numbers from 0 to 2, but one is 3"),
        ({"class_labels": [0, -1]}, "from 0 to 2, but one is -1"),
        ({"class_labels": [0.5]}, "from 0 to 2, but one is 0.5"),
        ({"class_labels": 1.0}, "from 0 to 2, but one is 1.0"),
        ({"class_labels": True}, "from 0 to 2, but one is True"),
        ({"class_labels": torch.tensor([False, True])}, "from 0 to 2, but one is False"),
        ({"class_labels": []}, "`class_labels` is empty"),
        ({"class_labels": 1, "guidance_scale": math.nan}, "`guidance_scale` must be a finite number"),
        ({"class_labels": "up"}, r"has 'up', but the classes are \['left', 'middle', 'right'\]"),
        ({"class_labels": [0, 1], "batch_size": 3}, "`class_labels` are 2, but the batch has 3 samples"),
    ],
)
def test_bad_labels_are_explained(
    charges: torch.Tensor, labels: torch.Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(charges, labels)(num_inference_steps=2, **options)


def test_a_network_without_the_classes_or_their_absence_is_explained(
    charges: torch.Tensor, labels: torch.Tensor
) -> None:
    pipe = pipeline(charges, labels, names=None)  # four embeddings, all of them classes
    with pytest.raises(ValueError, match="needs `class_labels`: 4 classes and no null class"):
        pipe(num_inference_steps=2)
    with pytest.raises(ValueError, match=r"`guidance_scale` = 3\.0 needs `class_labels`, and a network that was also"):
        pipe(class_labels=1, guidance_scale=3.0, num_inference_steps=2)
    pipe.unet.config.num_class_embeds = None
    with pytest.raises(ValueError, match="`class_labels` were given, but the network has no classes"):
        pipe(class_labels=1, num_inference_steps=2)


def test_a_denoiser_counts_a_guided_step_once(charges: torch.Tensor, labels: torch.Tensor) -> None:
    network = ExactNetwork(charges, Parameterization("sample"), 1.0, labels)
    denoiser = Denoiser(network, Parameterization("sample"), class_labels=torch.tensor([0, 1]))
    denoised = denoiser(charges[:2], 0.1)
    assert denoiser.nfe == 1 and torch.allclose(denoised, charges[:2], atol=0.3)


def test_guidance_leaves_a_learned_variance_to_the_condition() -> None:
    outputs = torch.randn(4, 6, 2, 2, generator=seeded())  # two images with their class, then without
    model = SimpleNamespace(dtype=torch.float32)
    parameterization = Parameterization("epsilon", learns_variance=True)
    guided = GuidedModel(model, parameterization, torch.tensor([0, 1]), 2, 3.0)
    guided.model = lambda *_, **__: (outputs,)
    (output,) = guided(torch.zeros(2, 3, 2, 2), torch.tensor(1.0))
    condition, none = outputs.chunk(2)
    assert torch.allclose(output[:, :3], none[:, :3] + 3 * (condition - none)[:, :3], atol=1e-5)
    assert torch.equal(output[:, 3:], condition[:, 3:])
