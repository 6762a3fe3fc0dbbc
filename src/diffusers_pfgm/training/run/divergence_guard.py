"""Stops a run that has diverged before its weights are saved.

A run has diverged if a loss, the norm of a gradient or a weight is NaN or infinite. In float16 the scaled gradients
overflow now and then: such a step is skipped and the loss scale is halved. This counts as divergence only when the loss
scale has become very small.
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

MIN_LOSS_SCALE = 1e-4  # gradients that overflow float16 at this scale have a norm of 1e8 and more


class DivergenceError(RuntimeError):
    """The training diverged."""


class DivergenceGuard:
    """Raises a `DivergenceError` on every process if the run has diverged on any of them.

    Args:
        accelerator: accelerate's `Accelerator` of the run.
        output_dir: The output folder of the run. The error names the last good checkpoint in it.
        write_record: Writes an event, its step and values to the log; None on all but the main process.
    """

    def __init__(
        self, accelerator: Accelerator, output_dir: str | Path, write_record: Callable[..., None] | None = None
    ) -> None:
        self.accelerator = accelerator
        self.output_dir = Path(output_dir)
        self._write_record = write_record
        self._losses: list[torch.Tensor] = []

    def note(self, loss: torch.Tensor) -> None:
        """Remember the loss () of a micro-batch, without synchronizing with the device."""
        self._losses.append(loss.detach())

    def check_gradients(self, step: int, norms: torch.Tensor) -> None:
        """Check losses and gradient. Every process must call this after the last `backward` of a step.

        Args:
            step: The number of the step.
            norms: The norms of the gradients over all processes, before `optimizer.step()`, of any shape.

        Raises:
            DivergenceError: if the losses or, except in float16, the norms are not finite on any process.
        """
        finite = {"the loss": all_finite(self._losses)}
        if self.accelerator.scaler is None:
            finite["the norm of the gradient"] = norms.isfinite().all()
        self._losses = []
        self._require(finite, step)

    def check_loss_scale(self, step: int) -> None:
        """Check float16's loss scale after `optimizer.step()`. It is read from the device only after a skipped step.

        Raises:
            DivergenceError: if the step was skipped and the loss scale is below 1e-4.
        """
        scaler = self.accelerator.scaler
        if scaler is not None and self.accelerator.optimizer_step_was_skipped:
            scale = scaler.get_scale()
            if scale < MIN_LOSS_SCALE:
                self._stop(step, f"the gradient of float16, scaled by {scale:.0e},")

    def check_weights(
        self,
        step: int,
        networks: torch.nn.Module,
        ema: EMAModel,
        optimizer: torch.optim.Optimizer,
        forward: Callable[[], Any],
    ) -> None:
        """Check everything that is saved. Every process must call this after a step whose weights will be saved.

        Args:
            step: The number of the step.
            networks: The network, or a `ModuleList` of all that are trained.
            ema: The EMA weights of the network.
            optimizer: The optimizer, whose state is saved too.
            forward: Calls the network. Finite weights may still be too large for a finite output.

        Raises:
            DivergenceError: if any weight, EMA weight, number in the optimizer's state or output is not finite.
        """
        state_values = [value for state in optimizer.state.values() for value in state.values()]
        finite = {
            "a weight": all_finite(networks.parameters()),
            "an EMA weight": all_finite(ema.shadow_params),
            "the state of the optimizer": all_finite(
                value for value in state_values if isinstance(value, torch.Tensor)
            ),
        }
        training = networks.training
        networks.eval()  # without dropout, which would draw from the global random state
        with torch.no_grad():
            finite["the network's output"] = all_finite([forward().sample])
        networks.train(training)
        self._require(finite, step)

    def _require(self, finite: Mapping[str, torch.Tensor], step: int) -> None:
        """Stop if any flag is False on any process. All flags are read from the device in one transfer."""
        failures = 1 - torch.stack([flag.to(self.accelerator.device) for flag in finite.values()]).float()
        if self.accelerator.num_processes > 1:
            failures = self.accelerator.reduce(failures, reduction="sum")
        failed = [name for name, count in zip(finite, failures.tolist(), strict=True) if count > 0]
        if failed:
            self._stop(step, " and ".join(failed))

    def _stop(self, step: int, what: str) -> None:
        if self._write_record is not None:
            self._write_record("diverged", step, reason=f"{what} became NaN or infinite")
        with side_output("Closing the tracker", self.output_dir):
            self.accelerator.end_training()
        raise DivergenceError(
            f"The training diverged at step {step:,}: {what} became NaN or infinite. Nothing of that step was saved. "
            f"{last_checkpoint(self.output_dir)} The same options would diverge again. Start a new run in another "
            "`--output_dir`, with a smaller `--learning_rate` or `--max_grad_norm`, or more `--lr_warmup_steps`."
        )
