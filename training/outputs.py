"""What a run of train_pfgm.py leaves besides its checkpoints: records, pictures, distances, the pipeline, the Hub."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from training_data import TrainingData

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler, fit_sigmas
from diffusers_pfgm.model_card import make_model_card, save_model_card
from diffusers_pfgm.plots import plot_sigma_density
from diffusers_pfgm.training.curves import plot_training
from diffusers_pfgm.training.hub import push
from diffusers_pfgm.training.records import Records, read_records
from diffusers_pfgm.training.samples import save_samples
from diffusers_pfgm.training.validation import BestModel


class Outputs:
    """Records, draws, measures, saves and publishes, with the average of the weights; on the main process.

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
        self.records = Records(self.folder / "log.jsonl")
        self.validation = data.validation()
        self.best = BestModel(self.folder / "best") if args.keep_best else None

    def log(self, step: int, values: dict[str, Any], event: str = "train") -> None:
        """To the tracker and to the file."""
        self.accelerator.log(values, step=step)
        self.records.write(event, step, **values)

    def at_intervals(self, step: int, steps_per_epoch: int) -> None:
        """What is due after this step."""
        args = self.args

        def due(epochs: int) -> bool:
            return step % (epochs * steps_per_epoch) == 0

        draws, measures, saves = map(due, (args.save_images_epochs, args.validation_epochs, args.save_model_epochs))
        if draws or measures or saves:
            with self.average() as pipeline:
                if draws:
                    self._draw(pipeline, step)
                if measures:
                    self._measure(pipeline, step)
                if saves:
                    self._save(pipeline, step)

    def at_the_end(self, step: int) -> None:
        """Everything, with steps that fit the learned field."""
        with self.average() as pipeline:
            self._draw(pipeline, step)
            self._measure(pipeline, step)
            pipeline.scheduler = self._fit_spacing(pipeline)
            self.records.write("end", step)
            plot_training(read_records(self.records.path)).savefig(self.folder / "training.png", dpi=110)
            self._save(pipeline, step, last=True)

    @contextlib.contextmanager
    def average(self) -> Iterator[PFGMPipeline]:
        """A pipeline of the averaged weights, which the network has until this ends."""
        self.ema.store(self.unet.parameters())
        self.ema.copy_to(self.unet.parameters())
        pipeline = PFGMPipeline(self.unet.eval(), self.scheduler, self.data.id2label)
        pipeline.set_progress_bar_config(disable=True)
        yield pipeline
        self.ema.restore(self.unet.parameters())
        self.unet.train()

    def _draw(self, pipeline: PFGMPipeline, step: int) -> None:
        grid = save_samples(pipeline, self.folder, step, self.args.eval_batch_size, self.args.num_inference_steps)
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": np.asarray(grid.convert("RGB"))[None]}, step=step, **layout)

    def _measure(self, pipeline: PFGMPipeline, step: int) -> None:
        if self.validation is None:
            return
        distance = self.validation.distance(pipeline, self.args.num_inference_steps)
        found = {"distance": distance, "distance_of_real_images": self.validation.floor}
        self.log(step, found, event="validation")
        count, calls = len(self.validation.held_out), self.args.num_inference_steps
        what = f"sliced Wasserstein distance of {count:,} samples of {calls} calls to held-out images (real images: "
        self.figures = [(f"{what}{self.validation.floor:.3f})", f"{distance:.3f}", _command())]
        if self.best is not None:
            self.best.offer(pipeline, distance, step)

    def _save(self, pipeline: PFGMPipeline, step: int, last: bool = False) -> None:
        pipeline.save_pretrained(self.folder)
        self._write_card(pipeline, step)
        if self.repo_id is not None:
            push(self.folder, self.repo_id, f"After step {step}", last=last)

    def _write_card(self, pipeline: PFGMPipeline, step: int) -> None:
        samples = sorted((self.folder / "samples").glob("step-*.png"))
        options = {name: value for name, value in self.settings.items() if not name.startswith(("unet.", "data."))}
        card = make_model_card(
            pipeline,
            dataset=self.args.dataset_name or self.args.train_data_dir,
            training={"steps": step, **options},
            figures=self.figures,
            sample_grid=samples[-1].relative_to(self.folder).as_posix() if samples else None,
            license=self.args.license,
            repo_id=self.repo_id,
        )
        save_model_card(card, self.folder)

    def _fit_spacing(self, pipeline: PFGMPipeline) -> PoissonFlowScheduler:
        """The scheduler with steps where this network's field bends, and a picture of their density."""
        unet, scheduler, options = pipeline.unet, pipeline.scheduler, {}
        shape = (unet.config.in_channels, self.args.resolution, self.args.resolution)
        if self.data.id2label is not None:
            options["class_labels"] = torch.arange(32, device=unet.device) % len(self.data.id2label)
        try:
            fitted = fit_sigmas(unet, scheduler, shape, torch.Generator().manual_seed(0), 32, **options)
        except ValueError as error:  # a network that has learned nothing yet is saved all the same
            self.accelerator.print(f"The default spacing of steps is kept: {error}")
            return scheduler
        plot_sigma_density(fitted).savefig(self.folder / "sigma-density.png", dpi=110)
        return fitted


def _command() -> str:
    """What started the run, without this machine's paths."""
    words = [word.partition("=") for word in sys.argv[1:]]
    shown = [sep.join([name, _name(value)]) if sep else _name(name) for name, sep, value in words]
    return " ".join(["accelerate launch training/train_pfgm.py", *shown])


def _name(word: str) -> str:
    return Path(word).name if Path(word).is_absolute() else word
