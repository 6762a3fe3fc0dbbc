"""diffusers' own pipelines, tiny and with random weights from fixed seeds. Nothing is downloaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDPMPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    VQModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.networks import make_tiny_unet

STAGES = (8, 16)
SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # Stable Diffusion's


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=54,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=16,
        projection_dim=16,
    )


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=STAGES,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )


def make_text_unet(cross_attention_dim: int, **options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=STAGES,
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim,
        norm_num_groups=4,
        attention_head_dim=4,
        **options,
    )


def make_stable_diffusion(scheduler: Any, folder: Path, kind: Any = StableDiffusionPipeline) -> Any:
    return kind(
        vae=make_vae(),
        text_encoder=CLIPTextModel(text_config()),
        tokenizer=make_tokenizer(folder),
        unet=make_text_unet(16),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_xl(scheduler: Any, folder: Path) -> StableDiffusionXLPipeline:
    unet = make_text_unet(
        32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
    )
    return StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=CLIPTextModel(text_config()),
        text_encoder_2=CLIPTextModelWithProjection(text_config()),
        tokenizer=make_tokenizer(folder),
        tokenizer_2=make_tokenizer(folder),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def make_dit(scheduler: Any) -> DiTPipeline:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
    )
    return DiTPipeline(transformer, make_vae(), scheduler)


def make_ldm(scheduler: Any) -> LDMPipeline:
    vq = VQModel(
        block_out_channels=STAGES,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=4,
    )
    return LDMPipeline(vq, make_tiny_unet(3, 3), scheduler)


def prompted(pipe: Any, steps: int, **options: Any) -> torch.Tensor:
    return pipe(
        "a cat",
        num_inference_steps=steps,
        guidance_scale=5.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **options,
    ).images


def plain(pipe: Any, steps: int) -> torch.Tensor:
    output = pipe(num_inference_steps=steps, output_type="np", generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(output.images)


def classes(pipe: Any, steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.as_tensor(pipe([1, 2], num_inference_steps=steps, output_type="np", generator=generator).images)


def redrawn(pipe: Any, steps: int) -> torch.Tensor:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return prompted(pipe, steps, image=image, strength=0.6)


PIPELINES: dict[str, tuple[Callable[[Any, Path], Any], Callable[[Any, int], torch.Tensor]]] = {
    "DDPM": (lambda scheduler, folder: DDPMPipeline(make_tiny_unet(3, 3), scheduler), plain),
    "DDIM": (lambda scheduler, folder: DDIMPipeline(make_tiny_unet(3, 3), scheduler), plain),
    "LDM": (lambda scheduler, folder: make_ldm(scheduler), plain),
    "DiT": (lambda scheduler, folder: make_dit(scheduler), classes),
    "StableDiffusion": (make_stable_diffusion, lambda pipe, steps: prompted(pipe, steps, height=16, width=16)),
    "StableDiffusionXL": (make_xl, lambda pipe, steps: prompted(pipe, steps, height=16, width=16)),
    "StableDiffusionImg2Img": (
        lambda scheduler, folder: make_stable_diffusion(scheduler, folder, StableDiffusionImg2ImgPipeline),
        redrawn,
    ),
}


def make(name: str, scheduler: Any, folder: Path) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = PIPELINES[name][0](scheduler, folder)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # DiT drops labels at random in training
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(name: str, pipe: Any, steps: int) -> torch.Tensor:
    return PIPELINES[name][1](pipe, steps)
