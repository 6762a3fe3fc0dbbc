"""What a run of train_pfgm.py leaves besides its checkpoints: records, pictures, distances, the pipeline, the Hub."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator, Mapping
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
from .records import Records, read_records
from .run_files import LOG
from .samples import save_samples
from .side_output import last_checkpoint, side_output
from .validation import BestModel

KINDS = ("save_images_epochs", "validation_epochs", "save_model_epochs")


def due(args: argparse.Namespace, step: int, steps_per_epoch: int) -> set[str]:
    """Which of the options that count epochs ask for something after this step."""
    return {kind for kind in KINDS if step % (getattr(args, kind) * steps_per_epoch) == 0}


class Outputs:
    """Records, draws, measures, saves and publishes, with the average of the weights; on the main process.

    The pipeline is saved before anything else. Where it cannot be saved, that is an error; where anything else fails,
    be it that memory or the disk is full, that is a warning, and the run goes on.

    Args:
        args: of the command line.
        accelerator: of the run, for its trackers.
        unet: the network in training.
        ema: the average of its weights.
        scheduler: that follows what it learns.
        data: of the run.
        settings: of the run, for the card.
        repo_id: of the model on the Hub; None without `--push_to_hub`.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        unet: UNet2DModel,
        ema: EMAModel,
        scheduler: PoissonFlowScheduler,
        data: TrainingData,
        settings: Mapping[str, Any],
        repo_id: str | None,
    ) -> None:
        self.args, self.accelerator, self.unet, self.ema, self.scheduler = args, accelerator, unet, ema, scheduler
        self.data, self.settings, self.repo_id, self.folder = data, settings, repo_id, Path(args.output_dir)
        self.figures: list[tuple[str, str, str]] = []
        self.sample_grid: str | None = None
        self.records = Records(self.folder / LOG)
        self.written = WrittenFiles(self.folder)
        self.validation = data.validation()
        self.best = BestModel(self.folder / "best") if args.keep_best else None

    def log(self, step: int, values: dict[str, Any], event: str = "train") -> None:
        """To the tracker and to the file."""
        with self._side_output("A record of the tracker"):
            self.accelerator.log(values, step=step)
        self.note(event, step, **values)

    def note(self, event: str, step: int, **values: Any) -> None:
        """To the file alone."""
        with self._side_output(f"A record in {LOG}"):
            self.records.write(event, step, **values)
            self.written.add(LOG)

    def at_intervals(self, step: int, kinds: set[str]) -> None:
        """What is `due` after this step."""
        with self.average() as pipeline:
            if "save_model_epochs" in kinds:
                self._save(pipeline)
            if "save_images_epochs" in kinds:
                self._draw(pipeline, step)
            if "validation_epochs" in kinds:
                self._measure(pipeline, step)
            if "save_model_epochs" in kinds:
                self._write_card(pipeline, step)
                self._push(step)

    def at_the_end(self, step: int) -> None:
        """Everything, with steps that fit the learned field."""
        with self.average() as pipeline:
            self._save(pipeline)
            self._draw(pipeline, step)
            self._measure(pipeline, step)
            self._fit_spacing(pipeline)
            self.note("end", step)
            with self._side_output("The picture training.png"):
                self._save_figure(plot_training(read_records(self.records.path)), "training.png")
            self._write_card(pipeline, step)
            self._push(step, last=True)

    @contextlib.contextmanager
    def average(self) -> Iterator[PFGMPipeline]:
        """A pipeline of the averaged weights, which the network has until this ends, however it ends."""
        training = self.unet.training
        self.ema.store(self.unet.parameters())
        try:
            self.ema.copy_to(self.unet.parameters())
            pipeline = PFGMPipeline(self.unet.eval(), self.scheduler, self.data.id2label)
            pipeline.set_progress_bar_config(disable=True)
            yield pipeline
        finally:
            self.ema.restore(self.unet.parameters())
            self.unet.train(training)

    def _side_output(self, what: str) -> contextlib.AbstractContextManager[None]:
        return side_output(what, self.folder)

    def _draw(self, pipeline: PFGMPipeline, step: int) -> None:
        args = self.args
        with self._side_output(f"The sample grid after step {step}"):
            grid = save_samples(pipeline, self.folder, step, args.eval_batch_size, args.num_inference_steps)
            self.sample_grid = f"samples/step-{step:06d}.png"
            self.written.add(self.sample_grid)
            with self._side_output("A sample grid of the tracker"):
                for tracker in self.accelerator.trackers:
                    layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                    tracker.log_images({"samples": np.asarray(grid.convert("RGB"))[None]}, step=step, **layout)

    def _measure(self, pipeline: PFGMPipeline, step: int) -> None:
        if self.validation is None:
            return
        calls = self.args.num_inference_steps
        with self._side_output(f"The validation after step {step}"):
            distance = self.validation.distance(pipeline, calls, self.args.eval_batch_size)
            found = {"distance": distance, "distance_of_real_images": self.validation.floor}
            self.log(step, found, event="validation")
            count = len(self.validation.held_out)
            what = (
                f"sliced Wasserstein distance of {count:,} samples of {calls} calls to held-out images (real images: "
            )
            self.figures = [(f"{what}{self.validation.floor:.3f})", f"{distance:.3f}", _command())]
            if self.best is not None:
                self.best.offer(pipeline, distance, step)

    def _save(self, pipeline: PFGMPipeline) -> None:
        try:
            pipeline.save_pretrained(self.folder)
        except OSError as error:
            raise OSError(
                f"{error}. {last_checkpoint(self.folder)} Make room and go on by `--resume_from_checkpoint latest`."
            ) from error

    def _push(self, step: int, last: bool = False) -> None:
        if self.repo_id is not None:
            push(self.folder, self.repo_id, f"After step {step}", last=last)

    def _write_card(self, pipeline: PFGMPipeline, step: int) -> None:
        options = {name: value for name, value in self.settings.items() if not name.startswith(("unet.", "data."))}
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
        """Give the saved pipeline steps where this network's field bends, and draw their density."""
        unet, options = pipeline.unet, {}
        count, shape = 32, (unet.config.in_channels, self.args.resolution, self.args.resolution)
        if self.data.id2label is not None:
            options["class_labels"] = torch.arange(count, device=unet.device) % len(self.data.id2label)
        generator, batch_size = torch.Generator().manual_seed(0), self.args.eval_batch_size
        with self._side_output("Fitting the spacing of the steps"):
            try:
                fitted = fit_sigmas(unet, pipeline.scheduler, shape, generator, count, batch_size, **options)
            except ValueError as error:  # a network that has learned nothing yet is saved all the same
                self.accelerator.print(f"The default spacing of steps is kept: {error}")
                return
            with atomic_directory(self.folder / "scheduler") as partial:
                fitted.save_pretrained(partial)
            pipeline.scheduler = fitted
            with self._side_output("The picture sigma-density.png"):
                self._save_figure(plot_sigma_density(fitted), "sigma-density.png")

    def _save_figure(self, figure: Figure, name: str) -> None:
        """A picture in the output folder that is whole or not there."""
        with atomic_file(self.folder / name) as partial:
            figure.savefig(partial, dpi=110, format="png")
        self.written.add(name)


def _command() -> str:
    """What started the run, with the last part of each path alone: the card is public."""
    words = []
    for word in sys.argv[1:]:
        option, separator, value = word.partition("=") if word.startswith("-") else ("", "", word)
        words.append(option + separator + strip_location(value))
    return shlex.join(["accelerate", "launch", "training/train_pfgm.py", *words])
