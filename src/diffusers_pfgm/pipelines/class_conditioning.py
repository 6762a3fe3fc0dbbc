"""Networks as pipelines call them: under class labels, with guidance in one call, before a progress bar."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..physics.parameterization import Parameterization

Label = int | str


def as_list(labels: Label | Sequence[Label] | torch.Tensor | None) -> list[Label] | None:
    """Labels as a list: one of a single label, a tensor's elements, a sequence's own.

    Raises:
        ValueError: if there are none in it.
    """
    if labels is None:
        return None
    if isinstance(labels, str):
        return [labels]
    if hasattr(labels, "tolist"):  # of torch and NumPy
        labels = labels.tolist()
    found = list(labels) if isinstance(labels, Sequence) else [labels]
    if not found:
        raise ValueError("`class_labels` is empty. Pass one label for each image, one for all, or None.")
    return found


class ClassLabels:
    """The classes of a network, a `UNet2DModel` with `num_class_embeds`.

    One embedding more than there are classes is the null class, which stands for no condition.

    Args:
        num_class_embeds: embeddings of the network; None for a network without classes.
        id2label: names by number, from 0; None if every embedding is a class and has no name.
    """

    def __init__(self, num_class_embeds: int | None, id2label: Mapping[Any, str] | None) -> None:
        self.embeddings = num_class_embeds or 0
        self.names = {str(name): int(number) for number, name in (id2label or {}).items()}
        self.count = len(id2label) if id2label else self.embeddings
        self.null = self.count if self.embeddings > self.count else None

    def numbers(self, labels: list[Label] | None, batch_size: int) -> list[int] | None:
        """One number for each sample: of its class, or the null class; None for a network without classes.

        Args:
            labels: one for each sample, or one for all.
            batch_size: the number of samples.

        Raises:
            ValueError: if a label is unknown, there are not `batch_size` of them, or they are needed and missing.
        """
        if not self.embeddings:
            if labels is not None:
                raise ValueError("`class_labels` were given, but the network has no classes (`num_class_embeds`).")
            return None
        if labels is None:
            if self.null is None:
                raise ValueError(f"The network needs `class_labels`: {self.count} classes and no null class.")
            return [self.null] * batch_size
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
            if label not in self.names:
                raise ValueError(f"`class_labels` has {label!r}, but the classes are {sorted(self.names)}.")
            return self.names[label]
        try:
            number = operator.index(label)
        except TypeError:
            number = -1
        if not 0 <= number < self.count:
            raise ValueError(f"`class_labels` must be whole numbers from 0 to {self.count - 1}, but one is {label}.")
        return number


class CountedModel:
    """A network as a function of sample and timestep alone, whose calls a progress bar counts."""

    def __init__(self, model: Callable[..., Any], progress_bar: Any, dtype: torch.dtype) -> None:
        self.model, self.progress_bar, self.dtype = model, progress_bar, dtype

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor) -> Any:
        self.progress_bar.update()
        return self.model(sample, timestep, return_dict=False)


class GuidedModel:
    """A network with classes under classifier-free guidance (arXiv 2207.12598), called like the network itself.

    The condition and its absence go through the network in one call, and x̂ = x̂_u + scale · (x̂_c − x̂_u).

    Args:
        model: the network.
        parameterization: of its output.
        class_labels: (B,).
        null: the class that stands for none.
        scale: 1 for the condition alone.
    """

    is_guided = True

    def __init__(
        self, model: Any, parameterization: Parameterization, class_labels: torch.Tensor, null: int, scale: float
    ) -> None:
        self.model, self.parameterization, self.scale, self.dtype = model, parameterization, scale, model.dtype
        self.class_labels = torch.cat([class_labels, torch.full_like(class_labels, null)])

    def __call__(
        self, sample: torch.Tensor, timestep: float | torch.Tensor, return_dict: bool = False
    ) -> tuple[torch.Tensor]:
        """The output for c_in x = `sample` (B, C, *) at `timestep`, a number or ()."""
        twice = torch.cat([sample, sample])
        outputs = self.model(twice, timestep, class_labels=self.class_labels, return_dict=False)[0]
        output, unconditional = outputs.chunk(2)
        if self.parameterization.prediction_type != "field":  # linear in x̂
            # A variance that the network also predicts stays that of the condition, as in diffusers' pipelines.
            prediction, variance = output.tensor_split([sample.shape[1]], dim=1)
            guided = torch.lerp(unconditional[:, : sample.shape[1]], prediction, self.scale)
            return (torch.cat([guided, variance], dim=1),)
        dtype = torch.promote_types(outputs.dtype, torch.float32)
        sigma = self.parameterization.sigma(timestep)
        x = sample.to(dtype) / self.parameterization.c_in(sigma)
        return (self.parameterization.guided_field(output.to(dtype), unconditional.to(dtype), self.scale, x, sigma),)
