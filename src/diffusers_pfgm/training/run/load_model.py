"""Loads the pipeline that the option `--model` or `--teacher` names."""

from __future__ import annotations

from typing import TypeVar

from ...pipelines.base import PoissonFlowPipeline
from ...utils.messages import reason

Pipeline = TypeVar("Pipeline", bound=PoissonFlowPipeline)


def load_model(pipeline_class: type[Pipeline], model: str, device: str = "cpu", option: str = "--model") -> Pipeline:
    """Load a pipeline onto a device.

    Args:
        pipeline_class: The class of the pipeline.
        model: The value of the option, a folder or a Hub id.
        device: The value of `--device`.
        option: The option that names the pipeline.

    Raises:
        ValueError: if the pipeline cannot be loaded, or the device cannot be used.
    """
    try:
        pipeline: Pipeline = pipeline_class.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`{option}` {model!r} cannot be loaded: {reason(error)}. Pass the output folder of "
            "train_pfgm.py, or the Hub id of such a model."
        ) from error
    try:
        return pipeline.to(device)
    except Exception as error:  # torch raises errors of many classes for devices that it was not built for
        raise ValueError(
            f"`--device` {device!r} cannot be used: {reason(error)}. Leave it out for the accelerator of this machine."
        ) from error
