"""A small network for points and the rows of tables, called like `UNet2DModel`, and its training."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from ..losses import PerturbationObjective
from ..schedulers import PoissonFlowScheduler

FREQUENCIES = 16  # of the embedding of c_noise


class PointNetwork(torch.nn.Module):
    """Three residual layers on points or rows (B, N), called like `UNet2DModel`.

    Args:
        dim: N.
        width: of the layers.
        dropout: share of a layer's units that training leaves out.
    """

    def __init__(self, dim: int, width: int = 128, dropout: float = 0.0) -> None:
        super().__init__()
        nn = torch.nn
        self.enter, self.leave = nn.Linear(dim, width), nn.Linear(width, dim)
        self.embed = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, 3 * width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width))
            for _ in range(3)
        )
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", torch.logspace(-1, 0.7, FREQUENCIES))

    @property
    def dtype(self) -> torch.dtype:
        return self.enter.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.enter.weight.device

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> SimpleNamespace:
        """The output for c_in x = `sample` (B, N) at c_noise = `timestep`, () or (B,)."""
        angles = timestep.to(self.dtype).reshape(-1, 1) * self.frequencies
        heights = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1)).chunk(3, dim=1)
        hidden = self.enter(sample)
        for block, height in zip(self.blocks, heights, strict=True):
            hidden = hidden + block(hidden + height)
        return SimpleNamespace(sample=self.leave(hidden))


def make_scheduler(aug_dim: float, sigma_min: float, sigma_max: float) -> PoissonFlowScheduler:
    """For a network with EDM's preconditioning on data of standard deviation 1; `math.inf` is the Gaussian limit."""
    return PoissonFlowScheduler(aug_dim, sigma_min, sigma_max, prediction_type="epsilon", sigma_data=1.0)


def train(
    network: PointNetwork,
    data: torch.Tensor,
    scheduler: PoissonFlowScheduler,
    steps: int,
    batch_size: int = 512,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> float:
    """Train on data (K, N) of standard deviation 1 by PFGM++'s objective; the mean loss of the last tenth."""
    generator = torch.Generator().manual_seed(seed)
    # In few dimensions a density counts the whole kernel.
    objective = PerturbationObjective(scheduler.parameterization, scheduler.config.aug_dim, -0.8, 1.4, bounded=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(data), (batch_size,), generator=generator)
        loss = objective(network, data[rows], generator).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
        losses.append(loss.detach())
    network.eval()
    return torch.stack(losses[-max(1, steps // 10) :]).mean().item()
