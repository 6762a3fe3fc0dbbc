"""Training of Poisson flow models: `data` reads images, `run` trains on them. Needs the extra `training`."""

from ..utils.extras import require_extra

require_extra("training", "accelerate", "datasets", "filelock", "matplotlib", "ot", "psutil", "tqdm")
