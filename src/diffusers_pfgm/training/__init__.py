"""What a training run is made of, one part a file. Needs the extra `training`."""

from ..utils.extras import require_extra

require_extra("training", "accelerate", "datasets", "filelock", "matplotlib", "ot", "psutil", "tqdm")
