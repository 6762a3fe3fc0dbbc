r"""Training objectives: what a Poisson flow network learns, as objects that take a model and a batch.

- `FieldObjective`, PFGM (arXiv 2209.11178, Algorithm 1): perturbed points regress the normalised field of a larger
  batch of charges. Its target is almost free of noise, but needs those charges, and D = 1.
- `PerturbationObjective`, PFGM++ (arXiv 2302.04265, section 3.2): each point regresses its own origin, for any D, ∞
  (denoising score matching) included. No charges, a noisier target.

With class labels a network learns one field for each class, of the charges that carry it, and for the null class the
field of all. Dropping labels at random teaches it both, for classifier-free guidance (arXiv 2207.12598).
"""

from .field import FieldObjective
from .loss_output import LossOutput, drop_labels
from .perturbation import PerturbationObjective

__all__ = ["FieldObjective", "LossOutput", "PerturbationObjective", "drop_labels"]
