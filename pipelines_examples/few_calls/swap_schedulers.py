"""Exchange schedulers between this package and diffusers, and show that the results agree.

    python pipelines_examples/few_calls/swap_schedulers.py

The network has random weights, so nothing is downloaded. The script prints relative differences between images in two
cases.

1. `PoissonFlowScheduler` replaces DDIM in a pipeline of diffusers. The line is the same for your own model:

    pipe = StableDiffusionPipeline.from_pretrained(...)
    pipe.scheduler = PoissonFlowScheduler.from_config(pipe.scheduler.config)

2. EDM's DPM-Solver++ of diffusers replaces `PoissonFlowScheduler` in `PFGMPipeline`.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import DDIMPipeline, DDIMScheduler, EDMDPMSolverMultistepScheduler, UNet2DModel

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.training.run.option_types import positive
from diffusers_pfgm.training.run.script_errors import run_script


def make_network() -> UNet2DModel:
    """Return a small network with random weights, which are the same every time."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    ).eval()


def relative_difference(images: torch.Tensor, expected: torch.Tensor) -> str:
    """Return ‖images − expected‖ / ‖expected‖ as text."""
    return f"{((images - expected).norm() / expected.norm()).item():.1e}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_inference_steps", type=positive, default=20, help="number of steps of both schedulers")
    steps = parser.parse_args(argv).num_inference_steps
    unet = make_network()

    pipe = DDIMPipeline(unet, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)

    def draw(scheduler: DDIMScheduler | PoissonFlowScheduler, count: int) -> torch.Tensor:
        pipe.scheduler = scheduler
        generator = torch.Generator().manual_seed(0)
        return torch.as_tensor(pipe(4, generator, num_inference_steps=count, output_type="np").images)

    ddim = DDIMScheduler(clip_sample=False)
    first_order = PoissonFlowScheduler.from_config(ddim.config, solver_order=1, use_corrector=False)
    default = PoissonFlowScheduler.from_config(ddim.config)
    print(f"DDIMPipeline, {steps} steps, relative differences:")
    print("  our solver of order 1 and DDIM        ", relative_difference(draw(first_order, steps), draw(ddim, steps)))
    print("  DDIM and DDIM with 500 steps          ", relative_difference(draw(ddim, steps), draw(ddim, 500)))
    print("  our default solver and it in 500 steps", relative_difference(draw(default, steps), draw(default, 500)))

    flow = PoissonFlowScheduler(aug_dim=None, prediction_type="epsilon", sigma_data=0.5, sigma_max=80.0)
    edm = EDMDPMSolverMultistepScheduler.from_config(flow.config, solver_type="heun")
    edm.set_timesteps(steps)
    ours = PoissonFlowScheduler.from_config(edm.config, solver_order=2, use_corrector=False)
    latents = flow.sample_prior((4, 1, 16, 16), torch.Generator().manual_seed(0))
    images = [
        PFGMPipeline(unet, edm)(num_inference_steps=steps, latents=latents, output_type="pt").images,
        PFGMPipeline(unet, ours)(sigmas=edm.sigmas, latents=latents, output_type="pt").images,
    ]
    print(f"PFGMPipeline, {steps} steps at the same noise levels, relative difference:")
    print("  our solver of order 2 and EDM's DPM-Solver++", relative_difference(*images))


if __name__ == "__main__":
    run_script(main)
