"""TF32 is off inside, and afterwards what it was."""

import threading
from collections.abc import Iterator

import pytest
import torch

from diffusers_pfgm import PoissonFlow, PoissonFlowScheduler
from diffusers_pfgm.solvers.precision import without_tf32


def switches() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = switches()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolution", [True, False])
def test_switches_come_back(matmul: str, convolution: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution
    with pytest.raises(KeyError), without_tf32(), without_tf32():
        assert switches() == ("highest", False)
        raise KeyError
    assert switches() == (matmul, convolution)


def test_threads_that_overlap_leave_them_as_they_were() -> None:
    torch.backends.cudnn.allow_tf32 = True
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with without_tf32():
            inside.set()
            leave.wait(10)

    with without_tf32():
        other = threading.Thread(target=stay)
        other.start()
        inside.wait(10)
    assert not torch.backends.cudnn.allow_tf32
    leave.set()
    other.join()
    assert torch.backends.cudnn.allow_tf32


def test_a_flows_networks_run_without() -> None:
    torch.backends.cudnn.allow_tf32, seen = True, []

    def model(sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        seen.append(torch.backends.cudnn.allow_tf32)
        return (sample / 2,)

    flow = PoissonFlow(model, PoissonFlowScheduler(prediction_type="sample"))
    x = torch.ones(1, 2)
    for call in (flow.encode, flow.decode, flow.log_prob):
        call(x, 3)
    flow.divergence(x, 1.0)
    assert not any(seen) and torch.backends.cudnn.allow_tf32
