"""The optimizer of a run, its learning-rate schedule and the EMA of the weights."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

# The critic must follow the changing images of the network. With 3 in place of 10, the network's images oscillated.
CRITIC_LEARNING_RATE = 10.0  # relative to that of the network


def make_ema(args: argparse.Namespace, unet: UNet2DModel, device: torch.device) -> EMAModel:
    """Return the exponential moving average of the network's weights, with warm-up, on a device."""
    ema = EMAModel(
        unet.parameters(),
        decay=args.ema_max_decay,
        use_ema_warmup=True,
        inv_gamma=args.ema_inv_gamma,
        power=args.ema_power,
        foreach=True,
        model_cls=UNet2DModel,
        model_config=unet.config,
    )
    ema.to(device)
    return ema


def make_optimizer(args: argparse.Namespace, unet: UNet2DModel, critic: UNet2DModel | None = None) -> torch.optim.AdamW:
    """Return AdamW for the weights of the network and of the critic, if any, whose learning rate is larger."""
    groups: list[dict[str, Any]] = [{"params": [*unet.parameters()]}]
    if critic is not None:
        groups.append({"params": [*critic.parameters()], "lr": CRITIC_LEARNING_RATE * args.learning_rate})
    return torch.optim.AdamW(
        groups,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
    )


def make_lr_scheduler(
    args: argparse.Namespace, optimizer: torch.optim.Optimizer, max_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return diffusers' schedule of the learning rate for a run of `max_steps` steps."""
    return get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        # At least one step after the warm-up: diffusers divides by their number.
        num_training_steps=max(max_steps, args.lr_warmup_steps + 1),
    )
