"""Class labels, classifier-free guidance, and the wrappers of a network that pipelines call."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..physics.parameterization import Parameterization

Label = int | str


def as_list(labels: Label | Sequence[Label] | torch.Tensor | None) -> list[Label] | None:
    """Return class labels as a list: the elements of a sequence or tensor, or a single label as a list of one.

    Raises:
        ValueError: if the sequence or tensor is empty.
    """
    if labels is None:
        return None
    if isinstance(labels, str):
        return [labels]
    if hasattr(labels, "tolist"):  # tensors, and arrays and numbers of NumPy
        labels = labels.tolist()
    labels = list(labels) if isinstance(labels, Sequence) else [labels]
    if not labels:
        raise ValueError("`class_labels` is empty. Pass one label for each image, one for all, or None.")
    return labels


class ClassLabels:
    """The classes of a `UNet2DModel` with `num_class_embeds`.

    If the network has one more embedding than there are names, the last one is the null class: no condition.

    Args:
        num_class_embeds: the number of embeddings of the network; None for a network without classes.
        id2label: the names of the classes by number, from 0; None if every embedding is a class without a name.

    Raises:
        ValueError: if the keys of `id2label` are not 0, 1, 2, ..., or the network has neither as many embeddings as
            there are names nor one more.
    """

    def __init__(self, num_class_embeds: int | None, id2label: Mapping[Any, str] | None) -> None:
        self.embeddings = num_class_embeds or 0
        keys = [*(id2label or {})]
        if sorted(map(str, keys)) != sorted(map(str, range(len(keys)))):
            raise ValueError(
                f"`id2label` must map the numbers 0, 1, 2, ... to the names of the classes, but has the keys "
                f"{keys!r:.80}. Number the classes from 0, as in the training."
            )
        if self.embeddings and keys and len(keys) not in (self.embeddings, self.embeddings - 1):
            raise ValueError(
                f"`id2label` must name the {self.embeddings} classes of the network (`num_class_embeds`), or "
                f"{self.embeddings - 1} if the last one is the null class, but has {len(keys)} names."
            )
        self.numbers_of: dict[str, list[int]] = {}
        for number, name in (id2label or {}).items():
            self.numbers_of.setdefault(str(name), []).append(int(number))
        self.count = len(id2label) if id2label else self.embeddings
        self.null_class = self.count if self.embeddings > self.count else None

    def numbers(self, labels: list[Label] | None, batch_size: int) -> list[int] | None:
        """Return the class number of each sample, the null class without labels; None for a network without classes.

        Args:
            labels: the label of each sample, or one for all; None for no condition.
            batch_size: the number of samples.

        Raises:
            ValueError: if a label is unknown, if there is neither one label nor `batch_size` of them, if the network
                has no classes but `labels` is not None, or if it has no null class and `labels` is None.
        """
        if not self.embeddings:
            if labels is not None:
                raise ValueError("`class_labels` were given, but the network has no classes (`num_class_embeds`).")
            return None
        if labels is None:
            if self.null_class is None:
                raise ValueError(
                    f"The network needs `class_labels`: {self.count} classes and no null class. Pass one for each "
                    "sample, or one for all."
                )
            return [self.null_class] * batch_size
        numbers = [self._number(label) for label in labels]
        if len(numbers) == 1:
            numbers = numbers * batch_size
        if len(numbers) != batch_size:
            raise ValueError(
                f"`class_labels` are {len(numbers)}, but the batch has {batch_size} samples. Pass one label for each, "
                "or one for all."
            )
        return numbers

    def _number(self, label: Label) -> int:
        if isinstance(label, str):
            numbers = self.numbers_of.get(label, [])
            if not numbers:
                raise ValueError(f"`class_labels` has {label!r}, but the classes are {sorted(self.numbers_of)}.")
            if len(numbers) > 1:
                raise ValueError(f"`class_labels` has {label!r}, but classes {numbers} have this name. Pass a number.")
            return numbers[0]
        try:
            number = -1 if isinstance(label, bool) else operator.index(label)
        except TypeError:
            number = -1
        if not 0 <= number < self.count:
            raise ValueError(f"`class_labels` must be whole numbers from 0 to {self.count - 1}, but one is {label}.")
        return number


@dataclass(eq=False)
class CountedModel:
    """A network as a function of sample and timestep only. A progress bar counts its calls."""

    model: Callable[..., Any]
    progress_bar: Any
    dtype: torch.dtype

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor) -> Any:
        self.progress_bar.update()
        return self.model(sample, timestep, return_dict=False)


class GuidedModel:
    """A network with classifier-free guidance (Ho and Salimans, arXiv 2207.12598), called like the network itself.

    The network is called once on a batch of 2B, with the labels and with the null class. Its posterior means x̂_c and
    x̂_u are combined as x̂ = x̂_u + scale · (x̂_c − x̂_u).

    Args:
        model: the network, with `num_class_embeds`.
        parameterization: the parameterization of its output.
        class_labels: the class numbers (B,).
        null_class: the number of the null class.
        scale: the guidance scale; 1 for the condition without guidance.
    """

    is_guided = True

    def __init__(
        self, model: Any, parameterization: Parameterization, class_labels: torch.Tensor, null_class: int, scale: float
    ) -> None:
        self.model = model
        self.parameterization = parameterization
        self.scale = scale
        self.dtype = model.dtype
        self.class_labels = torch.cat([class_labels, torch.full_like(class_labels, null_class)])

    def __call__(
        self, sample: torch.Tensor, timestep: float | torch.Tensor, return_dict: bool = False
    ) -> tuple[torch.Tensor]:
        """Return the guided output for `sample` = c_in x (B, C, *) at `timestep`, a number, () or (B,)."""
        timesteps = timestep
        if isinstance(timestep, torch.Tensor) and timestep.ndim:
            timesteps = torch.cat([timestep, timestep])
        batch = torch.cat([sample, sample])
        outputs = self.model(batch, timesteps, class_labels=self.class_labels, return_dict=False)[0]
        conditional, unconditional = outputs.chunk(2)
        parameterization = self.parameterization
        if parameterization.prediction_type != "field":  # linear in x̂, so the outputs are combined as x̂ is
            # A variance that the network also predicts is taken from the conditional output, as in diffusers.
            prediction, variance = conditional.tensor_split([sample.shape[1]], dim=1)
            guided = torch.lerp(unconditional[:, : sample.shape[1]], prediction, self.scale)
            return (torch.cat([guided, variance], dim=1),)
        dtype = torch.promote_types(outputs.dtype, torch.float32)
        noise_level = parameterization.noise_level_at(timestep, sample.ndim)
        x = sample.to(dtype) / parameterization.c_in(noise_level)
        with_null_class = parameterization.denoised(unconditional.to(dtype), x, noise_level)
        with_labels = parameterization.denoised(conditional.to(dtype), x, noise_level)
        guided = torch.lerp(with_null_class, with_labels, self.scale)
        return (parameterization.target(guided, x, noise_level),)
