"""Calls of a pipeline do not disturb each other, and callbacks work as in diffusers."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback, SDXLCFGCutoffCallback

from diffusers_pfgm import ChargeField, Inpainting, PFGMInversePipeline, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.pipelines.calls import copy_scheduler
from diffusers_pfgm.pipelines.class_conditioning import GuidedModel
from tests.networks import ExactNetwork, make_tiny_pipeline, make_tiny_unet, seeded

EPSILON = {"aug_dim": None, "prediction_type": "epsilon"}
NAMES = {0: "left", 1: "right"}
UPPER = Inpainting(torch.arange(8).unsqueeze(1) < 4)


def with_scheduler(theirs: Any) -> PFGMPipeline:
    """A pipeline with a scheduler of this class, one of diffusers or ours."""
    if theirs is PoissonFlowScheduler:
        return make_tiny_pipeline()
    kind = {"sigma_data": 0.5} if theirs is EDMDPMSolverMultistepScheduler else {"beta_schedule": "linear"}
    ours = PoissonFlowScheduler(**EPSILON, **kind)
    pipe = PFGMPipeline(make_tiny_unet(1, 1), theirs.from_config(ours.config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: PFGMPipeline, seed: int = 0, steps: int = 6, **options: Any) -> torch.Tensor:
    return pipe(1, steps, seeded(seed), output_type="pt", **options).images


@pytest.mark.parametrize(
    "theirs",
    [
        PoissonFlowScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EDMDPMSolverMultistepScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_a_call_within_a_callback_changes_nothing(theirs: Any) -> None:
    pipe, counts = with_scheduler(theirs), []
    alone, preview_alone = draw(pipe), draw(pipe, 7, 5)
    previews = []

    def preview(running: PFGMPipeline, step: int, *_: Any) -> dict[str, Any]:
        if step == 2:
            previews.append(draw(running, 7, 5))
            previews.append(draw(PFGMPipeline(running.unet, running.scheduler), 7, 5))
            running.scheduler.set_timesteps(4)  # as a user's own loop would
        counts.append((running.num_timesteps, len(running.scheduler.timesteps)))
        return {}

    assert torch.equal(draw(pipe, callback_on_step_end=preview), alone)
    assert all(torch.equal(image, preview_alone) for image in previews)
    calls = counts[0][0]
    assert counts[:2] == [(calls, calls)] * 2 and {image for image, _ in counts} == {calls}


def at_once(work: list[Callable[[], Any]]) -> list[Any]:
    """Results of functions that run in threads and start together."""
    results: list[Any] = [None] * len(work)
    start = threading.Barrier(len(work))

    def run(index: int) -> None:
        start.wait()
        results[index] = work[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class StepBarrier:
    """A callback that lets the calls of several threads take each step together."""

    def __init__(self, parties: int) -> None:
        self.barrier = threading.Barrier(parties, timeout=60)

    def __call__(self, pipe: PFGMPipeline, step: int, *_: Any) -> dict[str, Any]:
        self.barrier.wait()
        return {}


@pytest.mark.parametrize("theirs", [PoissonFlowScheduler, DPMSolverMultistepScheduler])
def test_concurrent_calls_draw_the_same_images_as_single_calls(theirs: Any) -> None:
    pipe, meet = with_scheduler(theirs), StepBarrier(3)
    seeds = (0, 1, 2)
    alone = [draw(pipe, seed) for seed in seeds]
    images = at_once([lambda seed=seed: draw(pipe, seed, callback_on_step_end=meet) for seed in seeds])
    assert all(torch.equal(image, expected) for image, expected in zip(images, alone, strict=True))


def test_a_run_of_a_copied_scheduler_does_not_change_the_original() -> None:
    """A run with a copy changes no attribute of the original, nor of the objects that it holds."""
    schedulers = [
        PoissonFlowScheduler(None, prediction_type="epsilon", sigma_data=0.5),
        PoissonFlowScheduler(None, prediction_type="epsilon", beta_schedule="linear", solver="heun"),
        UniPCMultistepScheduler(solver_p=DPMSolverMultistepScheduler()),
    ]
    for scheduler in schedulers:
        scheduler.set_timesteps(5)
        before = copy.deepcopy(vars(scheduler))
        own = copy_scheduler(scheduler)
        x = torch.randn(1, 1, 2, 2, generator=seeded())
        own.set_timesteps(4)
        for t in own.timesteps:
            x = own.step(own.scale_model_input(x, t), t, x).prev_sample
            assert repr(deep(vars(scheduler))) == repr(deep(before))


def deep(value: Any) -> Any:
    """A value with the attributes of every object in it."""
    if isinstance(value, dict):
        return {name: deep(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [deep(each) for each in value]
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    return deep(vars(value)) if hasattr(value, "__dict__") else value


def test_inverse_and_adaptive_calls_are_independent_too() -> None:
    pipe, meet = make_tiny_pipeline(), StepBarrier(2)
    inverse = PFGMInversePipeline(**pipe.components)
    inverse.set_progress_bar_config(disable=True)
    measurement = UPPER(torch.zeros(1, 1, 8, 8))

    def restore(**options: Any) -> torch.Tensor:
        return inverse(measurement, UPPER, generator=seeded(), num_inference_steps=3, **options).samples

    def solve(running: PFGMPipeline, step: int, *_: Any) -> dict[str, Any]:
        running(tolerance=0.5)
        return {}

    expected = [restore(), draw(pipe, steps=3)]
    calls = [
        lambda: restore(callback_on_step_end=meet),
        lambda: draw(pipe, steps=3, callback_on_step_end=meet),
    ]
    assert all(torch.equal(*pair) for pair in zip(at_once(calls), expected, strict=True))
    assert torch.equal(draw(pipe, steps=3, callback_on_step_end=solve), expected[1])


def test_a_users_loop_is_not_disturbed_by_a_call() -> None:
    pipe = make_tiny_pipeline()
    scheduler = pipe.scheduler

    def loop(between: Callable[[], Any]) -> torch.Tensor:
        scheduler.set_timesteps(5)
        x = scheduler.sample_prior((1, 1, 8, 8), seeded())
        for t in scheduler.timesteps:
            between()
            x = scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
        return x

    with torch.no_grad():
        assert torch.equal(loop(lambda: draw(pipe, steps=3)), loop(lambda: None))


def test_after_a_call_its_timesteps_can_be_read() -> None:
    pipe = make_tiny_pipeline()
    assert pipe.num_timesteps == 0 and pipe.guidance_scale == 1
    pipe.scheduler = PoissonFlowScheduler(solver="heun")
    draw(pipe, steps=4)
    assert pipe.num_timesteps == len(pipe.scheduler.timesteps) == 7


@pytest.fixture
def by_class() -> PFGMPipeline:
    """A pipeline with an exact network of two classes and the null class."""
    labels = torch.tensor([0, 0, 1, 1])
    charges = (labels.view(4, 1, 1, 1) - 0.5 + 0.1 * torch.randn(4, 1, 2, 2, generator=seeded())).contiguous()
    scheduler = PoissonFlowScheduler(prediction_type="epsilon", sigma_min=0.3)
    pipe = PFGMPipeline(ExactNetwork(charges, scheduler.parameterization, 1.0, labels), scheduler, NAMES)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guided_by(pipe: PFGMPipeline, scales: list[float], labels: list[int]) -> torch.Tensor:
    """Samples of a plain loop with a guidance scale for each step."""
    scheduler = PoissonFlowScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(len(scales))
    numbers = torch.tensor(labels)
    x = scheduler.sample_prior((len(labels), 1, 2, 2), seeded())
    for scale, t in zip(scales, scheduler.timesteps, strict=True):
        model = GuidedModel(pipe.unet, scheduler.parameterization, numbers, 2, scale)
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t)[0], t, x).prev_sample
    return x


def test_a_callback_sets_the_guidance_of_the_next_steps(by_class: PFGMPipeline) -> None:
    def increase(pipe: PFGMPipeline, *_: Any) -> dict[str, Any]:
        pipe._guidance_scale += 1
        return {}

    options = {"class_labels": ["left", "right"], "num_inference_steps": 4, "output_type": "latent"}
    images = by_class(guidance_scale=2.0, generator=seeded(), callback_on_step_end=increase, **options).images
    assert torch.allclose(images, guided_by(by_class, [2.0, 3.0, 4.0, 5.0], [0, 1]), atol=1e-5)
    assert by_class.guidance_scale == 2 + by_class.num_timesteps == 6


@pytest.mark.parametrize("several", [False, True])
def test_the_cutoff_of_diffusers_ends_guidance(by_class: PFGMPipeline, several: bool) -> None:
    cutoff: Any = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    options = {"class_labels": ["left", "right"], "num_inference_steps": 4, "output_type": "latent"}
    callback = MultiPipelineCallbacks([cutoff]) if several else cutoff
    images = by_class(guidance_scale=2.0, generator=seeded(), callback_on_step_end=callback, **options).images
    assert torch.allclose(images, guided_by(by_class, [2.0, 2.0, 2.0, 1.0], [0, 1]), atol=1e-5)
    assert [shape[0] for shape, _ in by_class.unet.calls[:4]] == [4, 4, 4, 2] and by_class.guidance_scale == 0
    assert (images - guided_by(by_class, [2.0] * 4, [0, 1])).abs().max() > 1e-3


def test_concurrent_calls_have_separate_guidance_scales(by_class: PFGMPipeline) -> None:
    meet = StepBarrier(2)

    def together(pipe: PFGMPipeline, step: int, *_: Any) -> dict[str, Any]:
        pipe._guidance_scale += pipe.guidance_scale  # doubles it: 2, 4, 8 and 0.5, 1, 2
        return meet(pipe, step)

    def guided(scale: float) -> torch.Tensor:
        return by_class(
            class_labels=[0, 1],
            guidance_scale=scale,
            generator=seeded(),
            num_inference_steps=3,
            output_type="latent",
            callback_on_step_end=together,
        ).images

    images = at_once([lambda: guided(2.0), lambda: guided(0.5)])
    assert torch.allclose(images[0], guided_by(by_class, [2.0, 4.0, 8.0], [0, 1]), atol=1e-5)
    assert torch.allclose(images[1], guided_by(by_class, [0.5, 1.0, 2.0], [0, 1]), atol=1e-5)


def test_all_tensors_by_their_names_and_the_last_state(by_class: PFGMPipeline) -> None:
    def zero_at_last(pipe: PFGMPipeline, step: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        assert list(tensors) == pipe._callback_tensor_inputs and tensors["prompt_embeds"].tolist() == [1]
        if step == pipe.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    state = by_class(
        class_labels=1,
        num_inference_steps=3,
        output_type="latent",
        callback_on_step_end=zero_at_last,
        callback_on_step_end_tensor_inputs=by_class._callback_tensor_inputs,
    ).images
    assert torch.equal(state, torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("from_outside", [False, True])
def test_an_interrupted_call_returns_its_state(from_outside: bool) -> None:
    pipe, states = make_tiny_pipeline(), []

    def stop(running: PFGMPipeline, step: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        states.append(tensors["latents"])
        if step == 1 and from_outside:
            thread = threading.Thread(target=setattr, args=(pipe, "_interrupt", True))
            thread.start()
            thread.join()
        elif step == 1:
            running._interrupt = True
        return {}

    output = pipe(1, 5, seeded(), output_type="latent", callback_on_step_end=stop)
    assert output.nfe == len(states) == 2 and torch.equal(output.images, states[-1])
    assert pipe.interrupt and pipe(1, 5, output_type="latent").nfe == 5 and not pipe.interrupt


def test_latent_is_the_state_before_it_becomes_images() -> None:
    pipe = make_tiny_pipeline()
    state = pipe(2, 3, seeded(), output_type="latent").images
    images = pipe(2, 3, seeded(), output_type="pt").images
    assert torch.equal((state / 2 + 0.5).clamp(0, 1), images) and state.abs().max() > 1
    points = PFGMPipeline(ChargeField(torch.randn(9, 5)), PoissonFlowScheduler())
    points.set_progress_bar_config(disable=True)
    assert points(4, output_type="latent").images.shape == (4, 5)


def test_an_inverse_pipeline_has_the_same_callbacks() -> None:
    pipe = PFGMInversePipeline(**make_tiny_pipeline().components)
    pipe.set_progress_bar_config(disable=True)
    measurement, records = UPPER(torch.zeros(2, 1, 8, 8)), []

    class Stop(PipelineCallback):
        tensor_inputs = ("latents", "prompt_embeds")

        def callback_fn(self, pipe: Any, step: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            records.append((pipe.num_timesteps, tuple(tensors["prompt_embeds"].shape)))
            pipe._interrupt = step == 2
            return tensors

    options = {"num_inference_steps": 6, "output_type": "latent", "generator": seeded()}
    output = pipe(measurement, UPPER, method="latent", callback_on_step_end=Stop(), **options)
    assert records == [(6, (2, 0))] * 3 and torch.equal(output.images, output.samples) and output.acceptance is None
    with pytest.raises(ValueError, match=r"must be among .* but has \['noise'\]"):
        pipe(measurement, UPPER, callback_on_step_end=print, callback_on_step_end_tensor_inputs="noise")


def test_a_callback_that_does_not_fit_is_explained(by_class: PFGMPipeline) -> None:
    with pytest.raises(
        ValueError, match=r"must be among \['latents', .*\], but has \['add_text_embeds', 'add_time_ids'\]"
    ):
        by_class(class_labels=1, callback_on_step_end=SDXLCFGCutoffCallback())
    with pytest.raises(ValueError, match="`guidance_scale` must be a finite number, 1 for no guidance, but is nan"):
        by_class(
            class_labels=1,
            callback_on_step_end=lambda pipe, *_: setattr(pipe, "_guidance_scale", float("nan")),
        )


def test_a_callback_may_take_no_tensors() -> None:
    tensors = []
    pipe = make_tiny_pipeline()
    for names in (None, []):
        draw(
            pipe,
            callback_on_step_end_tensor_inputs=names,
            callback_on_step_end=lambda *inputs: tensors.append(inputs[3]),
        )
    assert tensors == [{}] * len(tensors) != []


def test_an_adaptive_call_leaves_the_pipeline_its_scheduler() -> None:
    theirs = EDMEulerScheduler(sigma_max=40.0, sigma_min=0.01)
    pipe = PFGMPipeline(make_tiny_unet(out_channels=1), theirs)
    pipe.set_progress_bar_config(disable=True)
    pipe(tolerance=0.3, output_type="pt", generator=seeded())
    assert pipe.scheduler is theirs


def test_the_cutoff_of_diffusers_fits_a_network_without_classes() -> None:
    pipe = make_tiny_pipeline()
    cut = draw(pipe, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.5))
    assert torch.equal(cut, draw(pipe))
