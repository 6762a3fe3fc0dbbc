"""The critic of distribution matching: a copy of the teacher's network that also knows the noise level of a call."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel


def make_critic(unet: UNet2DModel, num_levels: int) -> UNet2DModel:
    """Return a copy of a network whose classes are those of `unet` at each of several noise levels.

    Class c at level i is the class c + i K of the critic, where K is the number of classes of `unet`, or 1 without
    classes. At first the outputs for all levels are those of `unet`.

    Args:
        unet: The network, with `num_class_embeds` classes or without classes.
        num_levels: The number of noise levels.
    """
    embedding = unet.class_embedding
    num_classes = unet.config.num_class_embeds or 1
    critic: UNet2DModel = UNet2DModel.from_config(unet.config, num_class_embeds=num_levels * num_classes)
    weights = unet.state_dict()
    if embedding is None:
        weights["class_embedding.weight"] = torch.zeros_like(critic.class_embedding.weight)
    else:
        weights["class_embedding.weight"] = embedding.weight.detach().repeat(num_levels, 1)
    critic.load_state_dict(weights)
    return critic
