"""The trained models that come with the package: class-conditional MNIST, 1.1 M parameters, D = 1, kept in float16.

- "mnist" was trained by the MNIST command of `training/README.md` with `--max_train_steps 3500`. It takes about twenty
  network calls.
- "mnist_consistency" was tuned from it with guidance 2, in 2,400 steps. It takes one to three.

Both were trained on the 60,000 training images of MNIST.
"""

from __future__ import annotations

from pathlib import Path

MODELS = ("mnist", "mnist_consistency")


def pretrained_model(name: str = "mnist") -> Path:
    """Return the folder of a trained model that comes with the package, for `PFGMPipeline.from_pretrained`.

    Args:
        name: "mnist", for about twenty network calls, or "mnist_consistency", for one to three with `guidance_scale=2`.
            Defaults to "mnist".

    Raises:
        ValueError: if there is no such model.

    Examples:
        >>> from diffusers_pfgm import PFGMPipeline, pretrained_model
        >>> pipe = PFGMPipeline.from_pretrained(pretrained_model("mnist"))
        >>> image = pipe(num_inference_steps=10, class_labels=7, guidance_scale=2).images[0]
        >>> image.size
        (28, 28)
    """
    if name not in MODELS:
        raise ValueError(f"`name` must be one of {', '.join(map(repr, MODELS))}, but is {name!r}.")
    return Path(__file__).parent / name
