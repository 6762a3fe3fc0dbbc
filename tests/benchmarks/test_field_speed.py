"""Time and memory of the field target, compared with the naive formulation and with its two matrix products."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch

from diffusers_pfgm import Charges, normalized_field, posterior_mean
from diffusers_pfgm.examples.claims.speed import naive_target
from tests.accelerator.device import DEVICE, needs_accelerator
from tests.networks import seeded


def seconds(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Median time of each function, measured alternately, so that changes of the machine's load affect all alike."""
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 2):
        for function, times in zip(functions, taken, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return [median(times[2:]) for times in taken]


def test_speed() -> None:
    x, charges = torch.randn(64, 3072, generator=seeded(0)), torch.randn(1024, 3072, generator=seeded(1))
    z, weights = 10 * torch.rand(64, generator=seeded(2)), torch.rand(64, 1024, generator=seeded(3))
    naive, _ = seconds(lambda: naive_target(x, z, charges), lambda: None, rounds=3)
    ours, products = seconds(
        lambda: normalized_field(x, z, charges), lambda: (x @ charges.T, weights @ charges), rounds=30
    )
    print(
        f"\nfield target, 64 x 1,024 x 3,072: {naive / ours:.0f} times faster than naive, "
        f"{ours / products:.2f} times its two float32 matrix products"
    )
    assert naive / ours >= 50 and ours / products <= 3


@needs_accelerator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_speed_of_many_charges_on_an_accelerator(dtype: torch.dtype) -> None:
    x, points = torch.randn(128, 3072, generator=seeded(0)), torch.rand(50_000, 3072, generator=seeded(1)) * 2 - 1
    x, points, sigma = 3 * x.to(DEVICE), points.to(DEVICE), torch.full((128,), 3.0, device=DEVICE)
    charges = Charges(points, dtype)

    def naive() -> None:
        for block in x.split(4):  # with 7 GB of temporaries
            differences = block.unsqueeze(1) - points
            log_weights = -(3073 / 2) * (differences.square().sum(-1) + 9).log()
            weights = log_weights.softmax(1)
            (weights.unsqueeze(-1) * differences).sum(1)
        torch.accelerator.synchronize()

    def ours() -> None:
        posterior_mean(x, sigma, charges)
        torch.accelerator.synchronize()

    (naive_time,), (our_time,) = seconds(naive, rounds=3), seconds(ours, rounds=10)
    shown = f"128 x 50,000 x 3,072, {dtype}, {DEVICE}"
    print(f"\nposterior mean, {shown}: {naive_time / our_time:.0f} times faster than naive")
    assert naive_time / our_time >= 20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak memory from Linux's /proc")
@pytest.mark.parametrize("sizes", [(128, 4096, 3072), (128, 60_000, 784)])
@pytest.mark.parametrize("prepared", [False, True])
def test_memory(sizes: tuple[int, int, int], prepared: bool) -> None:
    # A separate process, because this one may reuse freed memory, which would not be counted.
    script = f"""
import re, torch
from pathlib import Path
from diffusers_pfgm import Charges, normalized_field

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

B, L, N = {sizes}
x, z, charges = torch.randn(B, N), torch.rand(B), torch.rand(L, N)
normalized_field(x[:2], z[:2], charges[:50])  # the libraries' own buffers
charges = Charges(charges) if {prepared} else charges
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = kilobytes("VmRSS")
normalized_field(x, z, charges)
print(kilobytes("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    megabytes = int(done.stdout) / 1000
    shown = " x ".join(f"{size:,}" for size in sizes)
    print(f"\nfield target, {shown}, prepared={prepared}: {megabytes:.0f} MB beyond inputs")
    assert 0 < megabytes <= 200
