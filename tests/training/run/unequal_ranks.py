"""A training run in which rank 1 has no free memory, and from its third call on a loss that is not finite.

torchrun --nproc_per_node 2 tests/training/run/unequal_ranks.py <options of train_pfgm.py>
"""

from __future__ import annotations

import os
from typing import Any

from diffusers_pfgm import FieldObjective, LossOutput
from diffusers_pfgm.training.data import field_batches
from diffusers_pfgm.training.run import loop
from diffusers_pfgm.training.run.arguments import parse_args
from diffusers_pfgm.training.run.script_errors import run_script

RANK = int(os.environ.get("RANK", "0"))  # not set while tests are collected
call, calls = FieldObjective.__call__, []


def broken(self: FieldObjective, *args: Any, **options: Any) -> LossOutput:
    result = call(self, *args, **options)
    calls.append(result)
    return LossOutput(result.loss * (float("nan") if RANK and len(calls) > 2 else 1), result.per_sample, result.sigma)


if __name__ == "__main__":
    FieldObjective.__call__ = broken  # type: ignore[method-assign]
    field_batches.free_memory = lambda device: 0 if RANK else 2**50
    run_script(lambda: loop.main(parse_args(None)))
