"""Checksums of a model, by which saved results of other weights are detected."""

from __future__ import annotations

import json
import zlib
from typing import Any

import torch


def weights_checksum(network: torch.nn.Module) -> int:
    """Return a checksum of a network's weights and buffers."""
    value = 0
    for weight in network.state_dict().values():
        value = zlib.crc32(weight.detach().cpu().flatten().view(torch.uint8).numpy().tobytes(), value)
    return value


def pipeline_checksum(pipeline: Any) -> int:
    """Return a checksum of a pipeline's network and of its scheduler's configuration."""
    config = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    return zlib.crc32(json.dumps(config, sort_keys=True, default=str).encode(), weights_checksum(pipeline.unet))
