"""Stops a run that diverges before it writes anything of its weights.

A run has diverged where a loss, the norm of a gradient or a weight is NaN or infinite. The scaled gradients of float16
overflow now and then: such a step is skipped and the loss scale halved, which is no divergence until nothing is left of
the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from .finite_weights import all_finite
from .side_output import last_checkpoint, side_output

LEAST_LOSS_SCALE = 1e-4  # gradients that overflow float16 at this scale have a norm of 1e8 and more


class DivergenceError(RuntimeError):
    """The training has diverged."""


class DivergenceGuard:
    """Raises a `DivergenceError` on every process where the run has diverged on any.

    Args:
        accelerator: of the run.
        output_dir: of the run, whose last good checkpoint the error names.
        note: writes an event, its step and values to the run's records; on the main process.
    """

    def __init__(
        self, accelerator: Accelerator, output_dir: str | Path, note: Callable[..., None] | None = None
    ) -> None:
        self.accelerator, self.output_dir, self._write = accelerator, Path(output_dir), note
        self._losses: list[torch.Tensor] = []

    def note(self, loss: torch.Tensor) -> None:
        """Remember the loss () of a part of the step, without a look at the device."""
        self._losses.append(loss.detach())

    def check_gradients(self, step: int, norm: torch.Tensor) -> None:
        """To be called once a step by every process, after the last `backward` and before `optimizer.step()`.

        Args:
            step: its number.
            norm: (), of the gradient over all processes.
        """
        finite = {"the loss": all_finite(self._losses)}
        if self.accelerator.scaler is None:
            finite["the norm of the gradient"] = norm.isfinite()
        self._losses = []
        self._require(finite, step)

    def check_loss_scale(self, step: int) -> None:
        """To be called after `optimizer.step()`; reads from the device only where float16 has skipped the step."""
        scaler = self.accelerator.scaler
        if scaler is not None and self.accelerator.optimizer_step_was_skipped:
            scale = scaler.get_scale()
            if scale < LEAST_LOSS_SCALE:
                self._stop(step, f"the gradient of float16, scaled by {scale:.0e},")

    def check_weights(
        self,
        step: int,
        unet: torch.nn.Module,
        ema: EMAModel,
        optimizer: torch.optim.Optimizer,
        forward: Callable[[], Any],
    ) -> None:
        """To be called by every process after a step of which something will be saved.

        Args:
            step: its number.
            unet: the network.
            ema: the average of its weights.
            optimizer: its own numbers are saved too.
            forward: calls the network once more. Weights that are finite may be too large for a finite output.
        """
        kept = [value for state in optimizer.state.values() for value in state.values()]
        finite = {
            "a weight": all_finite(unet.parameters()),
            "an averaged weight": all_finite(ema.shadow_params),
            "the state of the optimizer": all_finite(value for value in kept if isinstance(value, torch.Tensor)),
        }
        training = unet.training
        unet.eval()  # dropout would draw from the global random state
        with torch.no_grad():
            finite["the network's output"] = all_finite([forward().sample])
        unet.train(training)
        self._require(finite, step)

    def _require(self, finite: Mapping[str, torch.Tensor], step: int) -> None:
        """Gather what all processes found, and read it back from the device at once."""
        broken = 1 - torch.stack([each.to(self.accelerator.device) for each in finite.values()]).float()
        if self.accelerator.num_processes > 1:
            broken = self.accelerator.reduce(broken, reduction="sum")
        found = [name for name, count in zip(finite, broken.tolist(), strict=True) if count > 0]
        if found:
            self._stop(step, " and ".join(found))

    def _stop(self, step: int, what: str) -> None:
        if self._write is not None:
            self._write("diverged", step, reason=f"{what} became NaN or infinite")
        with side_output("Closing the tracker", self.output_dir):
            self.accelerator.end_training()
        raise DivergenceError(
            f"The training diverged at step {step:,}: {what} became NaN or infinite. Nothing of that step was saved. "
            f"{last_checkpoint(self.output_dir)} The same options would diverge again. Start anew in another "
            "`--output_dir`, with a smaller `--learning_rate` or `--max_grad_norm`, or more `--lr_warmup_steps`."
        )
