"""Time of a divergence compared with plain network calls of the same batch, and memory for many images."""

import subprocess
import sys

import torch

from diffusers_pfgm import Parameterization
from diffusers_pfgm.physics.denoiser import Denoiser
from diffusers_pfgm.solvers.divergence import draw_probes, estimate_trace
from tests.benchmarks.test_field_speed import seconds
from tests.benchmarks.test_training_cost import network
from tests.networks import seeded


def test_divergence_of_the_demos_network() -> None:
    denoiser = Denoiser(network("demo's", 8, 1, 2).eval(), Parameterization())
    for batch in (4, 64):
        x = torch.randn(batch, 1, 8, 8, generator=seeded())
        probe = draw_probes(tuple(x.shape), 1, "rademacher", seeded(), x)

        def plain(x: torch.Tensor = x) -> None:
            with torch.no_grad():
                denoiser(x, 1.0)

        def hutchinson(x: torch.Tensor = x, probe: torch.Tensor = probe) -> None:
            estimate_trace(lambda points: denoiser(points, 1.0), x, "hutchinson", probe)

        def exact(x: torch.Tensor = x) -> None:
            estimate_trace(lambda points: denoiser(points, 1.0), x)

        call, one = seconds(plain, hutchinson, rounds=9)
        again, whole = seconds(plain, exact, rounds=3)
        print(f"\nN = 64, batch {batch}: a probe takes {one / call:.2f} plain calls, the exact divergence ", end="")
        print(f"{whole / again / 64:.2f} N")
        assert one / call <= 3.5 and whole / again <= 2.5 * 64


def test_memory_of_a_thousand_images() -> None:
    # A separate process, because this one may reuse freed memory, which would not be counted.
    script = """
import re, torch
from pathlib import Path
from diffusers_pfgm import PoissonFlow, PoissonFlowScheduler
from tests.benchmarks.test_training_cost import network

scheduler = PoissonFlowScheduler(prediction_type="epsilon", sigma_data=0.5, sigma_min=0.5, sigma_max=2.0)
flow = PoissonFlow(network("1.1 M", 28, 1, 1).eval(), scheduler)
x = torch.rand(1000, 1, 28, 28) * 2 - 1
flow.log_prob(x, 2, "hutchinson", generator=torch.Generator().manual_seed(0), step_tolerance=0.01)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    megabytes = int(done.stdout) / 1000
    print(f"\nlikelihood of 1,000 images 28 x 28, 1.1 M parameters: {megabytes:.0f} MB, all of the process")
    assert megabytes <= 2000
