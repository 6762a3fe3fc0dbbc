"""A small network for points and rows of tables, called like `UNet2DModel`, and its training."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from ..losses import PerturbationObjective
from ..schedulers import PoissonFlowScheduler

NUM_FREQUENCIES = 16  # the number of frequencies in the Fourier embedding of c_noise
WIDTH = 128  # the number of hidden units of a layer
BATCH_SIZE = 512
LEARNING_RATE = 3e-3  # at the start of a training; it decreases to 0 by a cosine schedule


class PointNetwork(torch.nn.Module):
    """A network of three residual blocks on points or rows (B, N), called like `UNet2DModel`.

    Args:
        dim: N, the number of coordinates of a point.
        dropout: the probability with which a hidden unit is dropped in training.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        nn = torch.nn
        self.input_layer = nn.Linear(dim, WIDTH)
        self.output_layer = nn.Linear(WIDTH, dim)
        self.embedding = nn.Sequential(nn.Linear(2 * NUM_FREQUENCIES, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 3 * WIDTH))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Dropout(dropout), nn.Linear(WIDTH, WIDTH))
            for _ in range(3)
        )
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", torch.logspace(-1, 0.7, NUM_FREQUENCIES))

    @property
    def dtype(self) -> torch.dtype:
        return self.input_layer.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.input_layer.weight.device

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> SimpleNamespace:
        """Return the output for `sample` = c_in x (B, N) at `timestep` = c_noise, () or (B,)."""
        angles = timestep.to(self.dtype).reshape(-1, 1) * self.frequencies
        embeddings = self.embedding(torch.cat([angles.sin(), angles.cos()], dim=1)).chunk(3, dim=1)
        hidden = self.input_layer(sample)
        for block, embedding in zip(self.blocks, embeddings, strict=True):
            hidden = hidden + block(hidden + embedding)
        return SimpleNamespace(sample=self.output_layer(hidden))


def make_scheduler(aug_dim: float, sigma_min: float, sigma_max: float) -> PoissonFlowScheduler:
    """Return a scheduler with EDM's preconditioning, for data of standard deviation 1.

    Args:
        aug_dim: D, the augmented dimension; `math.inf` for the Gaussian limit, a diffusion model.
        sigma_min: the least noise level, in standard deviations of the data.
        sigma_max: the largest noise level, in standard deviations of the data.
    """
    return PoissonFlowScheduler(aug_dim, sigma_min, sigma_max, prediction_type="epsilon", sigma_data=1.0)


def train_network(
    network: PointNetwork, data: torch.Tensor, scheduler: PoissonFlowScheduler, steps: int, seed: int
) -> float:
    """Train a network on data (K, N) of standard deviation 1 with the objective of PFGM++.

    Args:
        network: the network.
        data: (K, N), the data.
        scheduler: a scheduler from `make_scheduler`.
        steps: the number of training steps.
        seed: the seed of batches and noise.

    Returns:
        The mean loss of the last tenth of the steps.
    """
    generator = torch.Generator().manual_seed(seed)
    # `bounded=False` keeps the heavy tail of the noise, which matters for densities in few dimensions.
    objective = PerturbationObjective(scheduler.parameterization, scheduler.config.aug_dim, -0.8, 1.4, bounded=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(data), (BATCH_SIZE,), generator=generator)
        loss = objective(network, data[rows], generator).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
        losses.append(loss.detach())
    network.eval()
    return torch.stack(losses[-max(1, steps // 10) :]).mean().item()
