"""Divergence is detected, and skipped steps of float16 do not count."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffusers_pfgm.training.run.divergence_guard import DivergenceError, DivergenceGuard
from tests.device_reads import DeviceReads
from tests.networks import make_tiny_unet

NAN, FINE = torch.tensor(torch.nan), torch.tensor(1.0)


class Scaler:
    """A substitute for the gradient scaler of float16."""

    def __init__(self, scale: float) -> None:
        self.scale, self.reads = scale, 0

    def get_scale(self) -> float:
        self.reads += 1
        return self.scale


def make_guard(folder: Path, scaler: Scaler | None = None, skipped: bool = False, others: int = 0) -> DivergenceGuard:
    """A guard on the CPU; `others` processes report values that are not finite."""
    accelerator: Any = SimpleNamespace(
        scaler=scaler,
        optimizer_step_was_skipped=skipped,
        num_processes=2 if others else 1,
        device=torch.device("cpu"),
        reduce=lambda flags, reduction: flags + others,
        end_training=lambda: None,
    )
    return DivergenceGuard(accelerator, folder)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_one_accumulated_part_is_enough(tmp_path: Path, number: float) -> None:
    guard = make_guard(tmp_path)
    for loss in (1.0, 2.0):
        guard.note(torch.tensor(loss))
    guard.check_gradients(1, FINE)
    for loss in (1.0, number, 2.0):
        guard.note(torch.tensor(loss))
    with pytest.raises(DivergenceError, match=r"at step 2: the loss became NaN or infinite.*no checkpoint yet"):
        guard.check_gradients(2, FINE)
    guard.note(FINE)
    with pytest.raises(DivergenceError, match="at step 3: the norm of the gradient became NaN"):
        guard.check_gradients(3, torch.tensor(number))


def test_divergence_on_another_process_counts(tmp_path: Path) -> None:
    guard = make_guard(tmp_path, others=1)
    guard.note(FINE)
    with pytest.raises(DivergenceError):
        guard.check_gradients(1, FINE)


def test_skipped_steps_of_float16_are_not_divergence(tmp_path: Path) -> None:
    scaler = Scaler(0.5)
    guard = make_guard(tmp_path, scaler, skipped=True)
    guard.note(FINE)
    guard.check_gradients(1, torch.tensor(torch.inf))
    guard.check_loss_scale(1)
    assert scaler.reads == 1
    scaler.scale = 1e-6
    with pytest.raises(DivergenceError, match="the gradient of float16, scaled by 1e-06, became NaN or infinite"):
        guard.check_loss_scale(2)
    guard.note(NAN)
    with pytest.raises(DivergenceError, match="the loss"):
        guard.check_gradients(3, torch.tensor(torch.nan))
    unread = Scaler(1e-6)
    make_guard(tmp_path, unread).check_loss_scale(4)
    assert unread.reads == 0


def check_broken_weights(folder: Path, broken: str) -> None:
    unet = make_tiny_unet().train()
    optimizer = torch.optim.AdamW(unet.parameters())
    sum(weight.sum() for weight in unet.parameters()).backward()
    optimizer.step()
    ema: Any = SimpleNamespace(shadow_params=[weight.detach().clone() for weight in unet.parameters()])
    values = {
        "a weight": next(unet.parameters()).data,
        "an EMA weight": ema.shadow_params[3],
        "the state of the optimizer": next(iter(optimizer.state.values()))["exp_avg_sq"],
    }
    if broken in values:
        values[broken].view(-1)[0] = torch.inf

    def forward() -> Any:
        assert not unet.training and not torch.is_grad_enabled()
        return SimpleNamespace(sample=NAN if broken == "the network's output" else FINE)

    make_guard(folder).check_weights(7, unet, ema, optimizer, forward)
    assert unet.training


@pytest.mark.parametrize("what", ["a weight", "an EMA weight", "the state of the optimizer", "the network's output"])
def test_everything_that_is_saved_must_be_finite(tmp_path: Path, what: str) -> None:
    check_broken_weights(tmp_path, "nothing")
    with pytest.raises(DivergenceError, match=f"diverged at step 7: {what} became NaN or infinite"):
        check_broken_weights(tmp_path, what)


def test_a_step_reads_from_the_device_at_most_once(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    with DeviceReads() as reads:
        for _ in range(4):
            guard.note(torch.ones(()))
        guard.check_gradients(1, torch.ones(()))
    assert reads.count <= 1


def test_a_tracker_that_fails_does_not_hide_the_divergence(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)

    def full() -> None:
        raise OSError("no space left")

    guard.accelerator.end_training = full
    guard.note(NAN)
    with pytest.warns(UserWarning, match="no space left"), pytest.raises(DivergenceError, match="at step 4"):
        guard.check_gradients(4, FINE)
