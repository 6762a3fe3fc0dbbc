"""Pipelines of diffusers with special demands on a scheduler: equal images as with their own, or an error."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    IFPipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    StableDiffusionLatentUpscalePipeline,
    StableVideoDiffusionPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler
from tests.networks import make_tiny_unet, seeded
from tests.schedulers import tiny_pipelines
from tests.schedulers.test_diffusers_classes import SVD
from tests.schedulers.tiny_pipelines import SCALED_LINEAR, make, make_text_unet

STAGES = (16, 32)


def silent(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def near(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((actual - expected).norm() < 1e-5 * expected.norm())  # the rounding error of float32 over a run


def vision() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            projection_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            intermediate_size=16,
            patch_size=4,
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("steps", [6, 20])
def test_stable_video_diffusion_is_edm_with_data_of_scale_one(steps: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            sample_size=16,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            cross_attention_dim=16,
            num_attention_heads=8,
            projection_class_embeddings_input_dim=96,
            addition_time_embed_dim=32,
        )
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
        )
        encoder = vision()
    theirs = EulerDiscreteScheduler.from_config(SVD)
    ours = PoissonFlowScheduler.from_config(theirs.config, solver="euler")
    assert (ours.config.sigma_data, ours.sigma_range) == (1.0, (700.0, 0.002))
    processor = CLIPImageProcessor(crop_size=16, size=16)
    frames = []
    for scheduler in (ours, theirs):
        pipe = silent(StableVideoDiffusionPipeline(vae, encoder, unet, scheduler, processor))
        output = pipe(
            torch.rand(1, 3, 16, 16, generator=seeded()),
            height=16,
            width=16,
            num_frames=2,
            num_inference_steps=steps,
            generator=seeded(1),
            output_type="latent",
        )
        frames.append(output.frames)
    assert near(*frames)


def test_the_latent_upscaler_works_or_is_refused() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            act_fn="gelu",
            attention_head_dim=8,
            norm_num_groups=None,
            block_out_channels=(32, 32, 64, 64),
            time_cond_proj_dim=160,
            conv_in_kernel=1,
            conv_out_kernel=1,
            cross_attention_dim=32,
            down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
            up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
            in_channels=8,
            out_channels=5,
            mid_block_type=None,
            only_cross_attention=False,
            resnet_time_scale_shift="scale_shift",
            time_embedding_type="fourier",
            timestep_post_act="gelu",
        )
        vae = AutoencoderKL(
            block_out_channels=STAGES,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        )

    def upscaled(scheduler: Any) -> torch.Tensor:
        pipe = silent(StableDiffusionLatentUpscalePipeline(vae, None, None, unet, scheduler))
        prompt_embeds = torch.randn(1, 5, 32, generator=seeded())
        return pipe(
            image=torch.randn(1, 4, 16, 16, generator=seeded(1)),
            prompt_embeds=prompt_embeds,
            pooled_prompt_embeds=prompt_embeds[:, 0],
            num_inference_steps=8,
            guidance_scale=1.0,
            generator=seeded(2),
            output_type="latent",
        ).images

    theirs = EulerDiscreteScheduler(**SCALED_LINEAR, prediction_type="original_sample")
    expected, sigmas = upscaled(theirs), theirs.sigmas
    ours = PoissonFlowScheduler.from_config(theirs.config)
    assert ours.config.prediction_type == "sample"
    with pytest.raises(ValueError, match="StableDiffusionLatentUpscalePipeline, has a variance-exploding state"):
        upscaled(ours)

    class WithTheirSigmas(PoissonFlowScheduler):
        def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **_: Any) -> None:
            super().set_timesteps(device=device, sigmas=sigmas)

    ours = WithTheirSigmas(None, 0.01, 20.0, "sample", sigma_data=1.0, solver="euler")
    assert near(upscaled(ours), expected)


@pytest.fixture(scope="module")
def learned_unet() -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_text_unet(16, in_channels=3, out_channels=6)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range", "fixed_small"])
def test_the_variance_of_deepfloyd_is_ignored(variance_type: str, learned_unet: UNet2DConditionModel) -> None:
    ddpm = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    theirs = DPMSolverMultistepScheduler.from_config(ddpm.config, solver_type="heun")
    ours = PoissonFlowScheduler.from_config(
        theirs.config, solver_order=2, use_corrector=False, variance_type=variance_type
    )
    again = PoissonFlowScheduler.from_config(
        PoissonFlowScheduler.from_config(ours.config).config, variance_type=variance_type
    )
    prompt_embeds = torch.randn(1, 5, 16, generator=seeded())
    images = []
    for scheduler in (ours, again, theirs):
        pipe = silent(IFPipeline(None, None, learned_unet, scheduler, None, None, None, requires_safety_checker=False))
        output = pipe(
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=prompt_embeds * 0,
            num_inference_steps=20,
            generator=seeded(1),
            output_type="pt",
        )
        images.append(output.images)
    assert near(images[0], images[2]) and torch.equal(images[0], images[1])


def test_networks_with_a_learned_variance_in_pfgm_and_ddpm_pipelines() -> None:
    unet, images = make_tiny_unet(3, 6), []
    flow = PoissonFlowScheduler.from_config(DDPMScheduler(variance_type="learned").config, solver_order=1)
    for kind in (PFGMPipeline, DDPMPipeline):
        pipe = silent(kind(unet, flow))
        images.append(torch.as_tensor(pipe(num_inference_steps=5, generator=seeded(), output_type="np").images))
    assert near(*images)
    pipe = PFGMPipeline(unet, PoissonFlowScheduler.from_config(DDPMScheduler().config))
    with pytest.raises(ValueError, match=r"`unet` returns 6 channels for 3, .* `variance_type`"):
        pipe(num_inference_steps=2)


@pytest.mark.parametrize("solver", ["multistep", "heun"])
def test_kandinskys_prior_passes_prev_timestep(solver: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = PriorTransformer(
            num_attention_heads=2, attention_head_dim=8, embedding_dim=16, num_layers=1, num_embeddings=16
        )
        prior.clip_std.data.fill_(1.0)
        pipe = KandinskyV22PriorPipeline(
            prior=prior,
            image_encoder=vision(),
            text_encoder=CLIPTextModelWithProjection(tiny_pipelines.text_config()),
            tokenizer=tiny_pipelines.make_tokenizer(tmp_path),
            scheduler=PoissonFlowScheduler.from_config(
                UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0).config, solver=solver
            ),
            image_processor=CLIPImageProcessor(crop_size=16, size=16),
        )
    embeddings = silent(pipe)("a cat", num_inference_steps=5, generator=seeded(), output_type="pt").image_embeds
    assert embeddings.shape == (1, 16) and embeddings.isfinite().all() and embeddings.norm() > 0
    assert len(pipe.scheduler.timesteps) == (5 if solver == "multistep" else 9)


@pytest.mark.parametrize("kind", [DDPMPipeline, DDIMPipeline])
def test_pipelines_that_do_not_scale_raise_or_warn(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    pipe = silent(kind(make_tiny_unet(3, 3), DDIMScheduler()))
    pipe.scheduler = PoissonFlowScheduler(None, prediction_type="epsilon", sigma_data=0.5)
    with pytest.raises(ValueError, match="`scale_model_input` was not called before `step`"):
        pipe(num_inference_steps=3)
    pipe.scheduler = PoissonFlowScheduler(None, prediction_type="epsilon")
    for runs in (1, 2):
        pipe(num_inference_steps=3)
        warnings = ["has not read the scale of the initial state" in r.getMessage() for r in caplog.records]
        assert sum(warnings) == runs


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.19])
def test_too_little_strength_for_a_step_raises(strength: float, tmp_path: Path) -> None:
    scheduler = PoissonFlowScheduler.from_config(
        DDIMScheduler(**SCALED_LINEAR, steps_offset=1, clip_sample=False).config
    )
    pipe = make("StableDiffusionImg2Img", scheduler, tmp_path)
    with pytest.raises(
        ValueError, match="`strength` \\* `num_inference_steps` is less than 1, so that no step is left"
    ):
        pipe("a cat", image=torch.rand(1, 3, 16, 16, generator=seeded()), strength=strength, num_inference_steps=5)
