"""Checkpoints of score_sde, the code of score-based SDE models (arXiv 2011.13456), and of PFGM, whose code extends it.

PFGM's networks predict the normalized field, those of the VE and VP SDEs are diffusion models, D = ∞:

    VE    the output is σ times the score, −ε, and Fourier features embed ln σ. For images in [0, 1] σ is half of ours.
    VP    the output is ε, and the timestep is the step of DDPM, or 999 t with t from 0 to 1 in continuous time, where
          ᾱ(t) = exp(−t² (β₁ − β₀)/2 − t β₀) (appendix C). `trained_betas` give this ᾱ at each whole timestep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...models.ncsnpp_blocks import ResidualBlock, SelfAttention
from ...models.noise_embedding import RandomFrequencies

# Options that every configuration must have, and below in `SDES` the further ones for each SDE.
COMMON = {
    "name": "ncsnpp",
    "resblock_type": "biggan",
    "nonlinearity": "swish",
    "conditional": True,
    "skip_rescale": True,
    "progressive_combine": "sum",
    "fir_kernel": [1, 3, 3, 1],
}
SDES: dict[str, dict[str, Any]] = {
    "poisson": {"scale_by_sigma": False, "progressive": "none"},
    "vesde": {"scale_by_sigma": True, "embedding_type": "fourier"},
    "vpsde": {"scale_by_sigma": False, "embedding_type": "positional"},
}
SMALLEST_TIME = 1e-5  # the smallest t of the training in continuous time; at t = 0 there is no noise

# For the modules that consist of several layers: our names of these layers by those of the authors.
PARTS: dict[type, dict[str, str]] = {
    ResidualBlock: {
        "GroupNorm_0": "norm1",
        "Conv_0": "conv1",
        "Dense_0": "embedding",
        "GroupNorm_1": "norm2",
        "Conv_1": "conv2",
        "Conv_2": "shortcut",
    },
    SelfAttention: {"GroupNorm_0": "norm", "NIN_0": "query", "NIN_1": "key", "NIN_2": "value", "NIN_3": "out"},
}
# The convolutions of the input pyramids, which have a name in the authors' code and none in ours.
CONVOLUTIONS = {"Conv_0": "", "Conv2d_0": ""}


def read_score_sde(values: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the class name of a network, its options and the scheduler's options, from the authors' configuration.

    Args:
        values: the configuration with "model", "data", "training" and for PFGM "sampling".

    Raises:
        ValueError: if this package has no equivalent of the SDE or of options of the network. The message lists them.
        KeyError: if an entry is missing.
    """
    model, data, training = (values[name] for name in ("model", "data", "training"))
    sde, is_centered = training["sde"], data["centered"]
    if sde not in SDES:
        reason = ""
        if sde == "subvpsde":
            reason = " No scheduler here has the noise of the sub-VP SDE, whose variance is not 1 − ᾱ."
        raise ValueError(
            f"training.sde of the configuration must be one of {', '.join(SDES)}, but is {sde!r}, so that the network "
            f"cannot be converted.{reason}"
        )
    needed = COMMON | SDES[sde]
    other = [f"{name} = {model[name]!r}" for name, value in needed.items() if model[name] != value]
    if sde == "vesde" and not training["continuous"]:
        other.append("continuous = False")
    if sde != "vesde" and not is_centered:
        other.append(f"centered = {is_centered!r}")
    if other:
        raise ValueError(f"A network of training.sde = {sde!r} cannot be converted with {', '.join(other)}.")
    channels = data["num_channels"]
    options = {
        "sample_size": data["image_size"],
        "in_channels": channels,
        "out_channels": channels + (sde == "poisson"),
        "block_out_channels": [model["nf"] * factor for factor in model["ch_mult"]],
        "layers_per_block": model["num_res_blocks"],
        "attn_resolutions": model["attn_resolutions"],
        "dropout": model["dropout"],
    }
    options |= {name: model[name] for name in ("fir", "progressive_input", "progressive", "embedding_type")}
    if sde == "poisson":
        sampling = values["sampling"]
        scheduler = {
            "sigma_min": sampling["z_min"],
            "sigma_max": sampling["z_max"],
            "max_norm": sampling["upper_norm"],
            "M": training["M"],
            "gamma": training["gamma"],
            "prior": "plane",
        }
        return "NCSNpp", options, scheduler
    if sde == "vpsde":
        return "NCSNpp", options, _vp_options(model, training["continuous"])
    scale = 1.0 if is_centered else 2.0  # from the range of the images to [-1, 1]
    options |= {"timestep_scale": 1 / scale, "output_scale": -1.0}
    sigmas = {"sigma_min": scale * model["sigma_min"], "sigma_max": scale * model["sigma_max"]}
    return "NCSNpp", options, sigmas | {"aug_dim": None, "prediction_type": "epsilon"}


def _vp_options(model: Mapping[str, Any], is_continuous: bool) -> dict[str, Any]:
    first, last, steps = model["beta_min"], model["beta_max"], model["num_scales"]
    options: dict[str, Any] = {"aug_dim": None, "prediction_type": "epsilon"}
    if not is_continuous:
        schedule = {"beta_start": first / steps, "beta_end": last / steps, "num_train_timesteps": steps}
        return options | {"beta_schedule": "linear"} | schedule
    times = (torch.arange(1000, dtype=torch.float64) / 999).clamp(min=SMALLEST_TIME)
    log_alphas = -(times**2) * (last - first) / 2 - times * first
    betas = -torch.expm1(log_alphas.diff(prepend=torch.zeros(1, dtype=torch.float64)))
    return options | {"trained_betas": betas.tolist()}


def is_averaged(name: str) -> bool:
    """Whether a tensor of the authors' state dict has EMA weights: all but the noise levels and the frequencies."""
    return name not in ("sigmas", "all_modules.0.W")


def rename_score_sde(tensors: Mapping[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of the authors' state dict under the names of our network.

    Args:
        tensors: the tensors, whose names have the numbers of the modules in the order in which they run. Names that do
            not belong to the network are kept.
        network: the `NCSNpp` of the same configuration.
    """
    modules = _modules_in_order(network)
    names = {module: name for name, module in network.named_modules()}
    renamed = {}
    for key, tensor in tensors.items():
        number, _, inner = key.removeprefix("all_modules.").partition(".")
        if not number.isdecimal() or int(number) >= len(modules):
            if key != "sigmas":
                renamed[key] = tensor
            continue
        module = modules[int(number)]
        part, _, leaf = inner.rpartition(".")
        if isinstance(module, RandomFrequencies):
            leaf = "freqs"
        elif leaf in ("W", "b"):  # a linear layer that multiplies from the other side
            tensor, leaf = (tensor.T, "weight") if leaf == "W" else (tensor, "bias")
        parts = PARTS.get(type(module), CONVOLUTIONS)
        renamed[".".join(filter(None, [names[module], parts.get(part, part), leaf]))] = tensor
    return renamed


def _modules_in_order(network: Any) -> list[Any]:
    """The modules that have a number in the authors' code, in the order of their numbers."""
    modules = [] if network.fourier is None else [network.fourier]
    modules += [*network.time_embedding, network.conv_in]
    inputs, outputs = iter(network.input_pyramid), iter(network.output_pyramid)
    for stage in network.down:
        modules += stage
        if stage[0].resample and network.input_pyramid:
            modules.append(next(inputs).conv)
    for stage in network.middle:
        modules += stage
    for stage in network.up:
        if stage[0].resample and network.output_pyramid:
            level = next(outputs)
            modules += [level.norm, level.conv]
        modules += stage
    if network.output_pyramid:
        level = next(outputs)
        return [*modules, level.norm, level.conv]
    return [*modules, network.norm_out, network.conv_out]
