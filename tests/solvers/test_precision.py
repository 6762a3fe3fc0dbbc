"""TF32 and autocast are disabled in the context, and their settings are restored afterwards."""

import threading
from collections.abc import Iterator

import pytest
import torch

from diffusers_pfgm import PoissonFlow, PoissonFlowScheduler
from diffusers_pfgm.solvers.precision import full_precision


def tf32_settings() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    previous = tf32_settings()
    yield
    torch.set_float32_matmul_precision(previous[0])
    torch.backends.cudnn.allow_tf32 = previous[1]


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolution", [True, False])
def test_settings_are_restored(matmul: str, convolution: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution
    with pytest.raises(KeyError), full_precision(), full_precision():
        assert tf32_settings() == ("highest", False)
        raise KeyError
    assert tf32_settings() == (matmul, convolution)


def test_overlapping_threads_restore_the_settings() -> None:
    torch.backends.cudnn.allow_tf32 = True
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with full_precision():
            inside.set()
            leave.wait(10)

    with full_precision():
        other = threading.Thread(target=hold)
        other.start()
        inside.wait(10)
    assert not torch.backends.cudnn.allow_tf32
    leave.set()
    other.join()
    assert torch.backends.cudnn.allow_tf32


def test_a_flow_calls_its_network_without_tf32_and_autocast() -> None:
    torch.backends.cudnn.allow_tf32, settings = True, []

    def model(sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        settings.append(torch.backends.cudnn.allow_tf32 or torch.is_autocast_enabled("cpu"))
        return (sample / 2,)

    flow = PoissonFlow(model, PoissonFlowScheduler(prediction_type="sample"))
    x = torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        for call in (flow.encode, flow.decode, flow.log_prob):
            call(x, 3)
        flow.divergence(x, 1.0)
        assert not any(settings) and torch.backends.cudnn.allow_tf32 and torch.is_autocast_enabled("cpu")
