"""The outputs of a training run besides its checkpoints: records, images, validation, the pipeline and its upload."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from matplotlib.figure import Figure

from ...hub.model_card import CARD, make_model_card, save_model_card, strip_location
from ...hub.publishing import push
from ...hub.serialization import atomic_directory
from ...hub.written_files import WrittenFiles
from ...pipelines import PFGMPipeline
from ...plots import plot_sigma_density
from ...plots.training_curves import plot_training
from ...schedulers import PoissonFlowScheduler
from ...schedulers.fit_sigmas import fit_sigmas
from ...utils.atomic_file import atomic_file
from ..data.training_data import TrainingData
from .consistency_levels import fit_levels
from .records import Records, read_records
from .run_files import BEST, LOG
from .samples import save_samples
from .settings import MODEL_CHECKSUM, TEACHER_CHECKSUM
from .side_output import last_checkpoint, side_output
from .validation import BestModel

EPOCH_OPTIONS = ("save_images_epochs", "validation_epochs", "save_model_epochs")


def due(args: argparse.Namespace, step: int, steps_per_epoch: int) -> set[str]:
    """Return the options that ask for an output after this step, out of those that are intervals in epochs."""
    return {option for option in EPOCH_OPTIONS if step % (getattr(args, option) * steps_per_epoch) == 0}


@dataclass(eq=False)
class Outputs:
    """Writes the outputs of a run with the EMA weights: records, samples, validation, pipeline, card and upload.

    Only the main process uses it. The pipeline is saved first, and an error while saving it ends the run. If another
    output fails, for example because memory or disk are full, the run warns and continues.

    Args:
        args: The options of train_pfgm.py.
        accelerator: accelerate's `Accelerator` of the run, for its trackers.
        unet: The network in training.
        ema: The EMA weights of the network.
        scheduler: The scheduler for sampling.
        data: The data set of the run.
        settings: The settings of the run, for the model card.
        repo_id: The repository on the Hub; None without `--push_to_hub`.
        fits_levels: Whether the noise levels of a consistency model are fitted at the end of the run.
    """

    args: argparse.Namespace
    accelerator: Accelerator
    unet: UNet2DModel
    ema: EMAModel
    scheduler: PoissonFlowScheduler
    data: TrainingData
    settings: Mapping[str, Any]
    repo_id: str | None
    fits_levels: bool = True

    def __post_init__(self) -> None:
        self.folder = Path(self.args.output_dir)
        self.figures: list[tuple[str, str, str]] = []
        self.sample_grid: str | None = None
        self.records = Records(self.folder / LOG)
        self.written = WrittenFiles(self.folder)
        self.validation = self.data.validation()
        self.best = BestModel(self.folder / BEST) if self.args.keep_best else None

    def log(self, step: int, values: dict[str, Any], event: str = "train") -> None:
        """Write values to the tracker and to the log file."""
        with self._side_output("A record of the tracker"):
            self.accelerator.log(values, step=step)
        self.note(event, step, **values)

    def note(self, event: str, step: int, **values: Any) -> None:
        """Write an event to the log file only."""
        with self._side_output(f"A record in {LOG}"):
            self.records.write(event, step, **values)
            self.written.add(LOG)

    def at_intervals(self, step: int, options: set[str]) -> None:
        """Write the outputs that are due after this step.

        Args:
            step: Number of steps done.
            options: The options returned by `due`.
        """
        with self.ema_weights() as pipeline:
            if "save_model_epochs" in options:
                self._save(pipeline)
            if "save_images_epochs" in options:
                self._draw(pipeline, step)
            if "validation_epochs" in options:
                self._validate(pipeline, step)
            if "save_model_epochs" in options:
                self._write_card(pipeline, step)
                self._push(step)

    def at_the_end(self, step: int) -> None:
        """Write all outputs at the end of the run, with noise levels that are fitted to the network."""
        with self.ema_weights() as pipeline:
            self._save(pipeline)
            # The noise levels are fitted first, so that samples and distances are those of the saved pipeline.
            if not pipeline.scheduler.is_consistency_model:
                self._fit_spacing(pipeline)
            elif self.fits_levels:
                self._fit_levels(pipeline)
            self._draw(pipeline, step)
            self._validate(pipeline, step)
            self.note("end", step)
            with self._side_output("The figure training.png"):
                self._save_figure(plot_training(read_records(self.records.path)), "training.png")
            self._write_card(pipeline, step)
            self._push(step, last=True)

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[PFGMPipeline]:
        """A context in which the network has its EMA weights, with a pipeline of it. At its end they are restored.

        The network computes in float32, as the saved pipeline does. With mixed precision its x̂ would have rounding
        errors, to which the spacing of the noise levels would be fitted.
        """
        training = self.unet.training
        mixed_forward = self.unet.__dict__.pop("forward", None)  # accelerate's, which replaces that of the class
        self.ema.store(self.unet.parameters())
        try:
            self.ema.copy_to(self.unet.parameters())
            pipeline = PFGMPipeline(self.unet.eval(), self.scheduler, self.data.id2label)
            pipeline.set_progress_bar_config(disable=True)
            yield pipeline
        finally:
            self.ema.restore(self.unet.parameters())
            self.unet.train(training)
            if mixed_forward is not None:
                self.unet.forward = mixed_forward

    def _side_output(self, what: str) -> contextlib.AbstractContextManager[None]:
        return side_output(what, self.folder)

    def _draw(self, pipeline: PFGMPipeline, step: int) -> None:
        args = self.args
        with self._side_output(f"The sample grid after step {step}"):
            name = f"samples/step-{step:06d}.png"
            grid = save_samples(pipeline, self.folder / name, args.eval_batch_size, args.num_inference_steps)
            self.sample_grid = name
            self.written.add(name)
            with self._side_output("A sample grid of the tracker"):
                for tracker in self.accelerator.trackers:
                    layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                    tracker.log_images({"samples": np.asarray(grid.convert("RGB"))[None]}, step=step, **layout)

    def _validate(self, pipeline: PFGMPipeline, step: int) -> None:
        if self.validation is None:
            return
        calls = self.args.num_inference_steps
        with self._side_output(f"The validation after step {step}"):
            distance = self.validation.distance(pipeline, calls, self.args.eval_batch_size)
            floor = self.validation.floor
            self.log(step, {"distance": distance, "distance_of_real_images": floor}, event="validation")
            label = (
                f"sliced Wasserstein distance of {len(self.validation.held_out):,} samples, each from {calls} network "
                f"calls, to held-out images (real images: {floor:.3f})"
            )
            self.figures = [(label, f"{distance:.3f}", _command())]
            if self.best is not None:
                self.best.offer(pipeline, distance, step)

    def _save(self, pipeline: PFGMPipeline) -> None:
        try:
            pipeline.save_pretrained(self.folder)
        except OSError as error:
            raise OSError(
                f"{error}. {last_checkpoint(self.folder)} Free some space and resume by "
                "`--resume_from_checkpoint latest`."
            ) from error

    def _push(self, step: int, last: bool = False) -> None:
        if self.repo_id is not None:
            push(self.folder, self.repo_id, f"After step {step}", last=last)

    def _write_card(self, pipeline: PFGMPipeline, step: int) -> None:
        hidden = ("unet.", "data.", MODEL_CHECKSUM, TEACHER_CHECKSUM)
        options = {name: value for name, value in self.settings.items() if not name.startswith(hidden)}
        with self._side_output("The model card"):
            card = make_model_card(
                pipeline,
                dataset=self.args.dataset_name or self.args.train_data_dir,
                training={"steps": step, **options},
                figures=self.figures,
                sample_grid=self.sample_grid,
                license=self.args.license,
                repo_id=self.repo_id,
            )
            if save_model_card(card, self.folder):
                self.written.add(CARD)

    def _fit_spacing(self, pipeline: PFGMPipeline) -> None:
        """Fit the spacing of the noise levels to the network, save it in the scheduler and draw its density."""
        unet = pipeline.unet
        count = 32
        shape = (unet.config.in_channels, self.args.resolution, self.args.resolution)
        options: dict[str, Any] = {}
        if self.data.id2label is not None:
            options["class_labels"] = torch.arange(count, device=unet.device) % len(self.data.id2label)
        generator = torch.Generator().manual_seed(0)
        batch_size = self.args.eval_batch_size
        with self._side_output("Fitting the spacing of the noise levels"):
            try:
                fitted = fit_sigmas(unet, pipeline.scheduler, shape, generator, count, batch_size, **options)
            except ValueError as error:  # no spacing fits a network that has not learned anything yet
                self.accelerator.print(f"The default spacing of noise levels is kept: {error}")
                return
            self._save_scheduler(pipeline, fitted)
            with self._side_output("The figure sigma-density.png"):
                self._save_figure(plot_sigma_density(fitted), "sigma-density.png")

    def _fit_levels(self, pipeline: PFGMPipeline) -> None:
        """Fit the noise levels of a consistency model's calls to held-out or training images, and save them."""
        with self._side_output("Fitting the noise levels of a consistency model"):
            images, labels = self.data.reference_images(self.validation)
            self._save_scheduler(pipeline, fit_levels(pipeline, images, labels, self.args.eval_batch_size))

    def _save_scheduler(self, pipeline: PFGMPipeline, scheduler: PoissonFlowScheduler) -> None:
        """Replace the scheduler of the pipeline, and in the output folder."""
        with atomic_directory(self.folder / "scheduler") as partial:
            scheduler.save_pretrained(partial)
        pipeline.scheduler = scheduler

    def _save_figure(self, figure: Figure, name: str) -> None:
        """Write a figure into the output folder, atomically."""
        with atomic_file(self.folder / name) as partial:
            figure.savefig(partial, dpi=110, format="png")
        self.written.add(name)


def _command() -> str:
    """The command that started the run. Only the last part of each path is kept, since the model card is public."""
    words = []
    for word in sys.argv[1:]:
        option, separator, value = word.partition("=") if word.startswith("-") else ("", "", word)
        words.append(option + separator + strip_location(value))
    return shlex.join(["accelerate", "launch", f"training/{Path(sys.argv[0]).name}", *words])
