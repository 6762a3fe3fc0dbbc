r"""Distribution matching at any D: a network learns to draw the images of a trained model in one or a few calls.

The generator f is called as in sampling: at the first of a few fixed noise levels σ_1 > σ_2 > … it gets y + σ_1 n, with
an image y of the data set and the kernel's unit noise n, and at each further level f(x, σ) + σ' n, with the result of
the call before (arXiv 2405.14867, section 4.5). Its images g = f(x, σ) of all levels should have the distribution of
the images of a trained model, the teacher.

Two distributions are compared by their x̂, since x̂ − x has the direction of the Poisson field (`physics.field`) and two
sets of charges with the same field at all points and noise levels are equal. A second network, the critic, is trained
to predict the x̂_c of the generator's images (the "fake" network of the papers on distillation), by the squared error of
the image with the weight of EDM, and each image is moved by the difference d of x̂_c and the teacher's x̂:

    x_t = g + t n,        d = x̂_c(x_t, t) − x̂(x_t, t),        ∂L/∂g = d / (N σ_d mean|g − x̂(x_t, t)|)

Here t is drawn as in `losses.tuning`, N is the number of elements of a sample and σ_d the standard deviation of the
data. At D = ∞ this is distribution matching distillation (arXiv 2311.18828, equations 7 and 8), where d/t² is the
gradient of the Kullback-Leibler divergence of the noisy images. At finite D the same step matches the Poisson fields
(arXiv 2509.22454 has other losses for the same aim).

A network that is trained by a squared loss returns the mean of all images that fit its input, which is blurred. This
loss matches distributions, so each image is sharp, but it does not keep the image of each latent. It needs no ODE, so
that images of one call can be as good as those of many calls of the teacher.

The critic knows the level of each image, as further classes. Without them only the mixture of all levels would be
matched: on MNIST, digits of one call became too thin and those of two calls too thick.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..physics.bounded_noise import check_trainable, sample_bounded
from ..physics.charges import check_finite
from ..physics.kernel import PoissonKernel
from ..physics.parameterization import Parameterization
from ..physics.tensors import Generators, append_dims, check_samples, draw
from .loss_output import LossOutput
from .tuning import Teacher, call_network, draw_noise_levels, guide

LEAST_DISTANCE = 1e-3  # the smallest mean|g − x̂| by which d is divided, in σ_d


class DistributionMatchingObjective:
    """The objective of distribution matching for any D.

    Args:
        parameterization: the parameterization of the generator.
        teacher_parameterization: the parameterization of the teacher, which is also that of the critic.
        teacher: x̂ of a frozen network, called as `teacher(x, t, class_labels)` with x (B, C, *), t (B, 1, ...) and the
            labels (B,), or None.
        sigmas: the noise levels of the calls in sampling, decreasing, in data units.
        data_std: σ_d, the standard deviation of the data.
        aug_dim: D, at least 0.01; None for ∞. Defaults to 1.
        guidance_scale: the scale w of classifier-free guidance of the teacher; 1, the default, for none.
        num_classes: number of classes of the networks, with the null class; None, the default, for none.
        null_class: label of the null class, whose samples learn no guidance.

    Raises:
        ValueError: if `guidance_scale` is not finite or not 1 without `num_classes` and `null_class`, `sigmas` is
            empty or not positive and decreasing, `data_std` is not positive, or `aug_dim` is below 0.01.
    """

    def __init__(
        self,
        parameterization: Parameterization,
        teacher_parameterization: Parameterization,
        teacher: Teacher,
        sigmas: Sequence[float],
        data_std: float,
        aug_dim: float | None = 1.0,
        guidance_scale: float = 1.0,
        num_classes: int | None = None,
        null_class: int | None = None,
    ) -> None:
        if not math.isfinite(guidance_scale):
            raise ValueError(f"`guidance_scale` must be a finite number, but is {guidance_scale}. Use 1 for none.")
        if guidance_scale != 1 and (num_classes is None or null_class is None):
            raise ValueError(f"`guidance_scale` = {guidance_scale} needs `num_classes` and `null_class`.")
        edges = [math.inf, *sigmas, 0.0]
        if not sigmas or any(first <= second for first, second in itertools.pairwise(edges)):
            raise ValueError(f"`sigmas` must be finite, positive and strictly decreasing, but are {list(sigmas)}.")
        if not 0 < data_std < math.inf:
            raise ValueError(f"`data_std` must be a finite number > 0, but is {data_std}.")
        self.parameterization = parameterization
        self.teacher_parameterization = teacher_parameterization
        self.teacher = teacher
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.data_std = data_std
        self.kernel = PoissonKernel(aug_dim)
        check_trainable(self.kernel.aug_dim)
        self.guidance_scale = guidance_scale
        self.num_classes = num_classes
        self.null_class = null_class

    def __call__(
        self,
        model: Callable[..., Any],
        clean: torch.Tensor,
        generator: Generators = None,
        class_labels: torch.Tensor | None = None,
        *,
        critic: Callable[..., Any],
        **model_kwargs: Any,
    ) -> LossOutput:
        """Compute the sum of the losses of the generator `model` and of the critic on a batch, for one `backward`.

        The critic and the teacher are called once, with guidance the teacher twice, and the generator once for each of
        the `sigmas`, of which the last call has a gradient. The generator's loss has the gradient given above. Its
        value is that of ‖d‖² / (2 N σ_d mean|g − x̂|), which decreases as the images become those of the teacher.

        Args:
            model: the generator, called as `model(c_in x, c_noise, **model_kwargs).sample`.
            clean: clean samples y, (B, C, *), in data units, for the first noise level.
            generator: one torch generator, or a list of B of them.
            class_labels: (B,), passed to the networks; None without classes.
            critic: the critic, called like `model`, with `class_labels` (B,) that are the class plus the index of the
                noise level times `num_classes`; without classes the index of the noise level.
            **model_kwargs: further keyword arguments of the generator and the critic. The teacher does not get them.

        Returns:
            The loss, with the parts "generator" and "critic", at the noise levels t.

        Raises:
            ValueError: if `clean` is not floating-point or holds NaN or infinity, a network's output has the wrong
                shape, or there are `class_labels` without `num_classes` of the objective or the reverse.
        """
        check_samples("clean", clean)
        if (class_labels is None) != (self.num_classes is None):
            raise ValueError(
                f"`class_labels` go with `num_classes` of the objective, which is {self.num_classes}. Set both or none."
            )
        count = clean.shape[0]
        device = clean.device
        level = (draw(torch.rand, (count,), generator, device) * len(self.sigmas)).long()
        t = draw_noise_levels(count, self.data_std, self.sigmas[0], generator, device)
        unit = torch.ones_like(t)
        noise, *noises = (
            sample_bounded(self.kernel, tuple(clean.shape), unit, generator, device, clean.dtype)
            for _ in range(1 + len(self.sigmas))
        )
        check_finite("clean", clean)  # after the draws, during which a GPU may still compute the previous step
        critic_labels = level
        if class_labels is not None and self.num_classes is not None:
            model_kwargs["class_labels"] = class_labels
            critic_labels = class_labels + level * self.num_classes
        images = self._generate(model, clean, level, noises, model_kwargs)

        # The critic learns the x̂ of these images
        t_column = append_dims(t, clean.ndim)
        x_t = images.detach() + t_column * noise
        critic_kwargs = model_kwargs | {"class_labels": critic_labels}
        output, noise_level = call_network(
            critic, self.teacher_parameterization, x_t, t_column, clean.dtype, **critic_kwargs
        )
        critic_mean = self.teacher_parameterization.denoised(output, x_t, noise_level)
        s = torch.as_tensor(noise_level, device=device).expand_as(t_column).flatten()
        inverse_weight = s * self.data_std / torch.hypot(s, torch.full_like(s, self.data_std))  # c_out of EDM
        error = (critic_mean - images.detach()) / append_dims(inverse_weight, clean.ndim)
        critic_loss = error.flatten(1).square().mean(1)

        # The images are moved by the difference of both x̂
        with torch.no_grad():
            teacher_mean = self._teacher_mean(x_t, t_column, class_labels)
            distance = (images - teacher_mean).abs().flatten(1).mean(1)
            weight = 1 / (self.data_std * distance.clamp(min=LEAST_DISTANCE * self.data_std))
            moved = images - (critic_mean - teacher_mean)
        generator_loss = (images - moved).flatten(1).square().mean(1) * weight / 2
        per_sample = generator_loss + critic_loss
        parts = {"generator": generator_loss.detach(), "critic": critic_loss.detach()}
        return LossOutput(per_sample.mean(), per_sample.detach(), t, parts)

    def _generate(
        self,
        model: Callable[..., Any],
        clean: torch.Tensor,
        level: torch.Tensor,
        noises: Sequence[torch.Tensor],
        model_kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """Return images (B, C, *) of the generator, as in sampling.

        Args:
            model: the generator.
            clean: clean samples (B, C, *), in data units.
            level: the index (B,) of the noise level of the last call, which alone has a gradient.
            noises: unit noise (B, C, *) for each noise level.
            model_kwargs: further keyword arguments of the generator.
        """

        def generate(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            output, noise_level = call_network(model, self.parameterization, x, sigma, clean.dtype, **model_kwargs)
            return self.parameterization.denoised(output, x, noise_level)

        wide = torch.promote_types(clean.dtype, torch.float32)
        sigma = torch.full_like(append_dims(level, clean.ndim), self.sigmas[0], dtype=wide)
        x = clean + sigma * noises[0]
        for index, smaller in enumerate(self.sigmas[1:], 1):
            with torch.no_grad():
                renoised = generate(x, sigma) + smaller * noises[index]
            is_further = append_dims(level, clean.ndim) >= index
            x = torch.where(is_further, renoised, x)
            sigma = sigma.masked_fill(is_further, smaller)
        return generate(x, sigma)

    def _teacher_mean(self, x: torch.Tensor, t: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        """Return x̂ (B, C, *) of the teacher, with guidance where a sample has a class."""
        denoised = self.teacher(x, t, class_labels)
        if class_labels is None or self.null_class is None or self.guidance_scale == 1:
            return denoised
        unconditional = self.teacher(x, t, torch.full_like(class_labels, self.null_class))
        return guide(denoised, unconditional, self.guidance_scale, class_labels, self.null_class)
