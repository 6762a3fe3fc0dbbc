r"""Training objectives of Poisson flow networks, as objects that are called with a model and a batch.

- `FieldObjective`, PFGM (arXiv 2209.11178, Algorithm 1): the network is trained on the normalized field of a larger
  batch of charges, at D = 1. The target has little noise, but requires these charges.
- `PerturbationObjective`, PFGM++ (arXiv 2302.04265, section 3.2): the network is trained to recover a clean sample from
  its perturbation, at any D; at D = ∞ this is denoising score matching. The target needs no charges, but is noisier.
- `ConsistencyObjective`, consistency distillation (arXiv 2303.01469) and training (arXiv 2406.14548), here for any D: a
  trained network learns to jump to the end of a field line in one call.
- `DistributionMatchingObjective`, distribution matching distillation (arXiv 2311.18828), here for any D: a network of
  one or a few calls learns to draw images with the distribution of a trained network's.

With class labels the network learns a field for each class, from the charges of that class, and for the null class the
field of all charges. Labels that are dropped at random train both, for classifier-free guidance (arXiv 2207.12598).
"""

from .consistency import ConsistencyObjective
from .distribution_matching import DistributionMatchingObjective
from .field import FieldObjective
from .loss_output import LossOutput, drop_labels
from .perturbation import PerturbationObjective

__all__ = [
    "ConsistencyObjective",
    "DistributionMatchingObjective",
    "FieldObjective",
    "LossOutput",
    "PerturbationObjective",
    "drop_labels",
]
