"""Functions that the scripts in `pipelines_examples` share. Needs the extra `examples`."""

from ..utils.extras import require_extra

require_extra("examples", "datasets", "matplotlib", "ot", "sklearn", "torchmetrics")
