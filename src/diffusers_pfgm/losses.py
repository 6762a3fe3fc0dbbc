r"""Training objectives: what a Poisson flow network learns, as objects that take a model and a batch.

- `FieldObjective`, PFGM (arXiv 2209.11178, Algorithm 1): perturbed points regress the normalised field of a larger
  batch of charges. Its target is almost free of noise, but needs those charges, and D = 1.
- `PerturbationObjective`, PFGM++ (arXiv 2302.04265, section 3.2): each point regresses its own origin, for any D, ∞
  (denoising score matching) included. No charges, a noisier target.

With class labels a network learns one field for each class, of the charges that carry it, and for the null class the
field of all. Dropping labels at random teaches it both, for classifier-free guidance (arXiv 2207.12598).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .physics.bounded_noise import check_trainable, reach, sample_bounded
from .physics.charges import Charges, check_finite
from .physics.class_charges import ClassCharges, charges_of_class, check_charge_labels
from .physics.field import normalized_field
from .physics.hyperparameters import Hyperparameters, perturb
from .physics.kernel import Generators, PoissonKernel, draw
from .physics.parameterization import Parameterization

ChargesOfClass = Callable[[int], torch.Tensor | Charges]
BAND_EDGES = (0.01, 0.1, 1.0, 10.0)  # of σ, in data units: a factor of ten each


@dataclass
class LossOutput:
    """A loss, and what there is to log about it.

    Attributes:
        loss: (), the batch's mean, to call `backward` on.
        per_sample: (B,), detached.
        sigma: (B,), the height of each sample, in data units.
    """

    loss: torch.Tensor
    per_sample: torch.Tensor
    sigma: torch.Tensor

    def bands(self) -> dict[str, float]:
        """Mean loss by band of σ, such as {"loss/sigma_0.1_1": 0.02}; bands without a sample are left out.

        Reads from the device, so call it only when you log.
        """
        index = torch.bucketize(self.sigma.float().cpu(), torch.tensor(BAND_EDGES))
        losses, edges = self.per_sample.float().cpu(), ("0", *map(str, BAND_EDGES), "inf")
        return {
            f"loss/sigma_{edges[band]}_{edges[band + 1]}": losses[index == band].mean().item()
            for band in index.unique().tolist()
        }


def drop_labels(
    class_labels: torch.Tensor, probability: float, null_label: int, generator: Generators = None
) -> torch.Tensor:
    """Labels (B,) of which each is the null class with this probability."""
    drops = draw(torch.rand, tuple(class_labels.shape), generator, class_labels.device) < probability
    return class_labels.masked_fill(drops, null_label)


def _mean_squares(error: torch.Tensor, sigma: torch.Tensor) -> LossOutput:
    per_sample = error.flatten(1).square().mean(1)
    return LossOutput(per_sample.mean(), per_sample.detach(), sigma)


class FieldObjective:
    """The paper's objective: mean squared error to the normalised field of the charges, at D = 1.

    Args:
        hyperparameters: of the perturbation, from `recommend_hyperparameters`.
        gamma: γ of the normalised field, in data units.

    Example:
        >>> from diffusers_pfgm import ChargeField, recommend_hyperparameters
        >>> data = torch.rand(16, 1, 4, 4)
        >>> objective = FieldObjective(recommend_hyperparameters(data_norm=2.3, data_dim=16))
        >>> model = ChargeField(data)  # the exact field, which the objective must find flawless
        >>> float(objective(model, data[:4], charges=data).loss) < 1e-10
        True
    """

    def __init__(self, hyperparameters: Hyperparameters, gamma: float = 5.0) -> None:
        self.hyperparameters = hyperparameters
        self.parameterization = Parameterization("field", gamma)

    def __call__(
        self,
        model: Callable[..., Any],
        clean: torch.Tensor,
        charges: torch.Tensor | Charges | ClassCharges | None = None,
        generator: Generators = None,
        class_labels: torch.Tensor | None = None,
        charge_labels: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> LossOutput:
        """Loss of `model` on a batch.

        Args:
            model: called as `model(x, z, **model_kwargs).sample`, returns C + 1 channels.
            clean: (B, C, *), the points to perturb.
            charges: (K, C, *) with K ≥ B as a rule, the larger batch whose field is learned; `clean` by default.
                `Charges`, or with classes `ClassCharges`, where they stay the same between calls.
            generator: one generator, or a list of B of them.
            class_labels: (B,), the class that the network is told; one that no charge carries, such as the null class,
                stands for all charges.
            charge_labels: (K,), the classes of a tensor of charges; `class_labels` by default.
            **model_kwargs: given to the model.

        Raises:
            ValueError: if `clean` or `charges` hold NaN or infinity (by index), or shapes do not fit.
        """
        check_finite("clean", clean)
        x, z = perturb(clean, self.hyperparameters, generator=generator)
        charges = clean if charges is None else charges
        if class_labels is None:
            if charge_labels is not None:
                raise ValueError("`charge_labels` were given without `class_labels`. Pass both, or neither.")
            everything = charges.all if isinstance(charges, ClassCharges) else charges
            target = normalized_field(x, z, everything, self.parameterization.gamma)
        else:
            model_kwargs["class_labels"] = class_labels
            if isinstance(charges, torch.Tensor):
                carried = class_labels if charge_labels is None else charge_labels
                check_charge_labels(charges, carried)
                pick: ChargesOfClass = functools.partial(charges_of_class, charges, carried.cpu())
            elif isinstance(charges, ClassCharges):
                pick = charges.of
            else:
                raise ValueError(
                    "With `class_labels`, `charges` must be a tensor or ClassCharges, but are "
                    f"{type(charges).__name__}."
                )
            target = self._field_of_classes(x, z, pick, class_labels)
        output = model(x, z, **model_kwargs).sample
        self.parameterization.check_output(output, clean)
        v_x, v_z = output[:, :-1].flatten(1), output[:, -1:].flatten(1).mean(1, keepdim=True)
        return _mean_squares(torch.cat([v_x, v_z], dim=1).float() - target, z)

    def _field_of_classes(
        self, x: torch.Tensor, z: torch.Tensor, charges_of: ChargesOfClass, class_labels: torch.Tensor
    ) -> torch.Tensor:
        target = x.new_empty(x.shape[0], x[0].numel() + 1)
        labels = class_labels.cpu()
        for label in labels.unique().tolist():
            rows = (labels == label).nonzero().flatten().to(x.device)
            target[rows] = normalized_field(x[rows], z[rows], charges_of(label), self.parameterization.gamma)
        return target


class PerturbationObjective:
    """The perturbation objective of PFGM++ for any D: regress the clean point from its perturbation.

    σ is log-normal as in EDM (arXiv 2206.00364, table 1), whose hyper-parameters carry over by r = σ√D. The error is
    taken in the network's own output, which with `sigma_data` is EDM's weighting.

    By default the heavy tail of a finite D is cut where the noise exceeds four times its σ (`physics.bounded_noise`),
    so that inputs, targets and gradients are bounded. Give the scheduler the same limit, `max_norm`, and samples follow
    the data exactly.

    Args:
        parameterization: any but "field", whose target one point alone does not make.
        aug_dim: D, at least 0.01; None for ∞.
        p_mean: mean of ln σ.
        p_std: standard deviation of ln σ.
        bounded: cut the tail. False for the whole kernel, whose prior `PoissonFlow` takes for densities; for small D
            its losses overflow.

    Raises:
        ValueError: for "field", or a D that is too small.

    Example:
        >>> from diffusers_pfgm import PoissonFlowScheduler
        >>> objective = PerturbationObjective(Parameterization("epsilon", sigma_data=0.5), aug_dim=1.0)
        >>> limit = objective.max_norm(sigma_max=80.0, data_dim=64)
        >>> scheduler = PoissonFlowScheduler(
        ...     sigma_max=80.0, prediction_type="epsilon", sigma_data=0.5, max_norm=limit
        ... )
        >>> scheduler.config.max_norm
        2560.0
    """

    def __init__(
        self,
        parameterization: Parameterization,
        aug_dim: float | None = 1.0,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        bounded: bool = True,
    ) -> None:
        if parameterization.prediction_type == "field":
            raise ValueError(
                "prediction_type 'field' needs the field of many charges: use `FieldObjective`, or another type here."
            )
        self.parameterization, self.kernel = parameterization, PoissonKernel(aug_dim)
        self.p_mean, self.p_std, self.bounded = p_mean, p_std, bounded and math.isfinite(self.kernel.aug_dim)
        check_trainable(self.kernel.aug_dim)

    def max_norm(self, sigma_max: float, data_dim: int) -> float | None:
        """Largest norm ‖x‖ that training has seen at `sigma_max`, in data units; None without a limit, as at D = ∞.

        It is the `max_norm` of a scheduler that draws `data_dim` numbers with the trained network.
        """
        return sigma_max * reach(data_dim) if self.bounded else None

    def __call__(
        self, model: Callable[..., Any], clean: torch.Tensor, generator: Generators = None, **model_kwargs: Any
    ) -> LossOutput:
        """Loss of `model`, called as `model(c_in x, c_noise, **model_kwargs).sample`, on `clean` (B, C, *).

        Raises:
            ValueError: if `clean` holds NaN or infinity (by index), or the output has the wrong shape.
        """
        check_finite("clean", clean)
        normal = draw(torch.randn, (clean.shape[0],), generator, clean.device)
        sigma = (self.p_mean + self.p_std * normal).exp()
        height = sigma.view(-1, *[1] * (clean.ndim - 1))
        sample = functools.partial(sample_bounded, self.kernel) if self.bounded else self.kernel.sample
        x = clean + sample(tuple(clean.shape), sigma, generator, clean.device, clean.dtype)
        form = self.parameterization
        output = model(form.input_scale(height) * x, form.label(sigma), **model_kwargs).sample
        form.check_output(output, clean)
        return _mean_squares(output.float() - form.target(clean, x, height), sigma)
