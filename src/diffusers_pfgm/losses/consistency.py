r"""Consistency tuning at any D: a trained network learns to jump from any point of a field line to its end.

A consistency model f(x, σ) is constant along each field line dx/dσ = (x − x̂)/σ and equal to x at σ = 0, so that it maps
noise to data in one call (arXiv 2303.01469). It is tuned from a trained x̂_θ (arXiv 2406.14548, "easy consistency
tuning", and arXiv 2402.08159 for PFGM++), as

    f(x, σ) = c_b x + (1 − c_b) x̂_θ(x, σ),        c_b = σ_b²/(σ_b² + s²),

with the noise level s of the preconditioning (`physics.preconditioning`) and a small σ_b. The term c_b x ensures that
f(x, 0) = x; without it the network can become constant.

The loss compares f at two points x_t and x_r of one field line, at noise levels t > r, with the gradient at x_t only:

    L = E [√(‖f(x_t, t) − f(x_r, r)‖²/N + c²) − c] / [(1 − r/t) √(s² + σ_d²)]

with c = 0.05 σ_d, where σ_d is the standard deviation of the data. x_t = y + t n has the kernel's unit noise n, and t
is drawn as in `losses.tuning`. The weight depends on x_t and t alone, so it does not move the minimum. There are two
ways from x_t to x_r:

- Consistency distillation: one step of Heun's method with the direction d(x, t) = (x − x̂)/t of a frozen network, the
  teacher. The step has no variance, and its error is of third order in its length, so that r may be far from t.
- Consistency training needs no teacher: x_r = x_t + (r − t) n = y + r n. As E[n | x_t] = (x_t − x̂)/t is dx/dσ at x_t
  for the noise of any fixed distribution, this is on average a step of Euler's method, for the Student-t kernel as for
  the Gaussian.

At r = 0 the target is the x̂ of the teacher, or y, and f is the denoiser. In training the closer r is to t, the closer
f is to the solution of the ODE, but the noisier is the loss. So r approaches t in seven stages k = 0, …, 6 of equal
length, which the progress of the run selects:

    r/t = 1 − 2^(−k−1) (1 + 8 sigmoid(−t/(2 σ_d))),        0 if negative or if r < 0.01 σ_d.

Distillation has k = 2 in the whole run, about 35 steps from σ_max to 0. Both the shorter steps of k = 3 and the longer
ones of r = t/2 gave worse images of two calls.

With classifier-free guidance (arXiv 2207.12598) of scale w the field is that of x̂_w = x̂_∅ + w (x̂ − x̂_∅), where x̂_∅ is
the teacher's prediction without a class. f then jumps along the guided field lines. In training the direction is
w n − (w − 1)(x_t − x̂_∅)/t, so that the target at r = 0 is w y − (w − 1) x̂_∅.

With dropout the predictions at x_t and x_r would come from two different networks, so dropout should be off.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from ..physics.bounded_noise import check_trainable, sample_bounded
from ..physics.charges import check_finite
from ..physics.kernel import PoissonKernel
from ..physics.parameterization import Parameterization
from ..physics.tensors import Generators, append_dims, check_samples
from .loss_output import LossOutput
from .tuning import LEAST_SIGMA, Teacher, call_network, draw_noise_levels, guide

HUBER = 0.05  # the constant c of the loss, in σ_d
NUM_STAGES = 7  # the number of stages k in which r approaches t
DISTILLATION_STAGE = 2  # the stage k of distillation


class ConsistencyObjective:
    """The objective of consistency tuning for any D.

    Args:
        parameterization: the parameterization of the consistency model, with a `boundary`.
        sigma_max: the largest noise level t, in data units.
        data_std: σ_d, the standard deviation of the data.
        aug_dim: D, at least 0.01; None for ∞. Defaults to 1.
        guidance_scale: the scale w of classifier-free guidance that the model learns; 1, the default, for none.
        teacher: x̂ of a frozen network, called as `teacher(x, t, class_labels)` with x (B, C, *), t (B, 1, ...) and the
            labels (B,), or None. Needed for `distillation`, and if `guidance_scale` is not 1.
        null_class: label of the null class, whose samples learn no guidance. Needed if `guidance_scale` is not 1.
        distillation: whether x_r is reached by a step of the teacher's ODE (consistency distillation) and not by the
            noise of the sample (consistency training, the default).

    Raises:
        ValueError: if `parameterization` has no boundary, `guidance_scale` is not finite or not 1 without `teacher` or
            `null_class`, `distillation` has no `teacher`, `sigma_max` or `data_std` is not positive, or `aug_dim` is
            below 0.01.
    """

    def __init__(
        self,
        parameterization: Parameterization,
        sigma_max: float,
        data_std: float,
        aug_dim: float | None = 1.0,
        guidance_scale: float = 1.0,
        teacher: Teacher | None = None,
        null_class: int | None = None,
        distillation: bool = False,
    ) -> None:
        if parameterization.boundary is None:
            raise ValueError("`parameterization` needs a `boundary` for a consistency model, such as 0.1 σ_d.")
        if not math.isfinite(guidance_scale):
            raise ValueError(f"`guidance_scale` must be a finite number, but is {guidance_scale}. Use 1 for none.")
        if guidance_scale != 1 and (teacher is None or null_class is None):
            raise ValueError(
                f"`guidance_scale` = {guidance_scale} needs `teacher`, the x̂ of the frozen network, and `null_class`."
            )
        if distillation and teacher is None:
            raise ValueError("`distillation` needs `teacher`, the x̂ of the frozen network.")
        for name, value in (("sigma_max", sigma_max), ("data_std", data_std)):
            if not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be a finite number > 0, but is {value}.")
        self.parameterization = parameterization
        self.kernel = PoissonKernel(aug_dim)
        check_trainable(self.kernel.aug_dim)
        self.sigma_max = sigma_max
        self.data_std = data_std
        self.guidance_scale = guidance_scale
        self.teacher = teacher
        self.null_class = null_class
        self.distillation = distillation

    def smaller_sigma(self, sigma: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the noise level r of the target for each t = `sigma`.

        Args:
            sigma: noise levels t, (B,), in data units.
            progress: the share of the run that is done, from 0 to 1, which selects the stage of training.

        Returns:
            (B,), in data units; 0 where the target is x̂ or the clean sample.

        Raises:
            ValueError: if `progress` is outside of [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"`progress` must be a number from 0 to 1, but is {progress}.")
        stage = DISTILLATION_STAGE if self.distillation else min(int(progress * NUM_STAGES), NUM_STAGES - 1)
        ratio = 1 - 2.0 ** (-stage - 1) * (1 + 8 * torch.sigmoid(-sigma / (2 * self.data_std)))
        smaller = sigma * ratio
        return smaller.where(smaller >= LEAST_SIGMA * self.data_std, torch.zeros_like(smaller))

    def __call__(
        self,
        model: Callable[..., Any],
        clean: torch.Tensor,
        generator: Generators = None,
        class_labels: torch.Tensor | None = None,
        progress: float = 1.0,
        **model_kwargs: Any,
    ) -> LossOutput:
        """Compute the loss of `model` on a batch. The model is called twice, once without a gradient.

        In distillation the teacher is called twice too. Guidance needs as many further calls of it, in training one.

        Args:
            model: called as `model(c_in x, c_noise, **model_kwargs).sample`.
            clean: clean samples y, (B, C, *), in data units.
            generator: one generator, or a list of B of them.
            class_labels: (B,), passed to the model; None for a model without classes.
            progress: the share of the run that is done, from 0 to 1. Defaults to 1, the last stage. It has no effect in
                distillation.
            **model_kwargs: further keyword arguments of the model.

        Returns:
            The loss and its parts.

        Raises:
            ValueError: if `clean` is not floating-point or holds NaN or infinity, the model's output has the wrong
                shape, `progress` is outside of [0, 1], or there are no `class_labels` although the objective has
                guidance.
        """
        check_samples("clean", clean)
        if class_labels is None and self.guidance_scale != 1:
            raise ValueError(f"`guidance_scale` = {self.guidance_scale} needs `class_labels` for each sample.")
        if class_labels is not None:
            model_kwargs["class_labels"] = class_labels
        sigma = draw_noise_levels(clean.shape[0], self.data_std, self.sigma_max, generator, clean.device)
        smaller = self.smaller_sigma(sigma, progress)
        unit = torch.ones_like(sigma)
        noise = sample_bounded(self.kernel, tuple(clean.shape), unit, generator, clean.device, clean.dtype)
        check_finite("clean", clean)  # after the draws, during which a GPU may still compute the previous step
        t, r = (append_dims(each, clean.ndim) for each in (sigma, smaller))
        x = clean + t * noise  # float32 at least, since x_r differs little from it
        predict = functools.partial(self._predict, model, model_kwargs, clean.dtype)
        with torch.no_grad():
            # Where r = 0 the predictions at r are not used, but the networks need a positive noise level.
            positive_r = r.clamp(min=LEAST_SIGMA * self.data_std)
            direction = self._direction(x, t, noise, class_labels)
            x_r = x + (r - t) * direction
            if self.distillation:
                mean_direction = (direction + self._direction(x_r, positive_r, noise, class_labels)) / 2
                x_r = torch.where(r > 0, x + (r - t) * mean_direction, x_r)
            predicted, _ = predict(x_r, positive_r)
            target = torch.where(r > 0, predicted, x_r)
        predicted, noise_level = predict(x, t)
        squares = (predicted - target).flatten(1).square().mean(1)
        c = HUBER * self.data_std
        s = torch.as_tensor(noise_level, device=x.device).expand_as(t).flatten()
        weight = 1 / ((1 - smaller / sigma) * torch.hypot(s, torch.full_like(s, self.data_std)))
        # √(squares + c²) − c in a form that loses no digits where `squares` is small
        per_sample = squares / ((squares + c**2).sqrt() + c) * weight
        return LossOutput(per_sample.mean(), per_sample.detach(), sigma)

    def _predict(
        self,
        model: Callable[..., Any],
        model_kwargs: dict[str, Any],
        dtype: torch.dtype,
        x: torch.Tensor,
        sigma: torch.Tensor,
    ) -> tuple[torch.Tensor, Any]:
        """Return f(x, σ) (B, C, *) and the noise level of the preconditioning."""
        output, noise_level = call_network(model, self.parameterization, x, sigma, dtype, **model_kwargs)
        return self.parameterization.denoised(output, x, noise_level), noise_level

    def _direction(
        self, x: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor, class_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Return dx/dσ (B, C, *) of the teacher's field lines, or in training the noise n, with guidance if learned."""
        if self.teacher is None:
            return noise
        direction = noise
        if self.distillation:
            direction = (x - self.teacher(x, sigma, class_labels)) / sigma
        if class_labels is None or self.null_class is None or self.guidance_scale == 1:
            return direction
        null_labels = torch.full_like(class_labels, self.null_class)
        unconditional = (x - self.teacher(x, sigma, null_labels)) / sigma
        return guide(direction, unconditional, self.guidance_scale, class_labels, self.null_class)
