"""The conversion of a checkpoint to one of our networks with its weights, and the options of its scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...models import edm, ncsnpp
from .presets import read_configuration
from .restricted_pickle import check_archive, read_pickle, state_dict_of
from .score_sde import is_averaged, rename_score_sde

CLASSES = {"NCSNpp": ncsnpp.NCSNpp, "SongUNet": edm.SongUNet, "DhariwalUNet": edm.DhariwalUNet}
SHOWN = 5  # the number of keys that an error message lists


@dataclass
class Conversion:
    """A converted checkpoint.

    Attributes:
        network: the network with the weights of the checkpoint.
        scheduler_options: the options of `PoissonFlowScheduler` with which the network was published.
    """

    network: Any
    scheduler_options: dict[str, Any]


def convert_checkpoint(checkpoint: str | Path, config: str, raw: bool = False) -> Conversion:
    """Convert a checkpoint of the authors of PFGM, score-based SDE models, PFGM++ or EDM.

    Args:
        checkpoint: the `.pth` of PFGM's or score_sde's code, the `.pkl` of EDM's or PFGM++'s, or a state dict as
            `.safetensors`.
        config: the name of a preset, or a JSON file, see `presets.read_configuration`.
        raw: whether to convert the weights of the last training step instead of the EMA weights. A `.pth` has both.

    Raises:
        ValueError: if the file is missing or damaged, if it uses names that the weights of a network do not need, if it
            belongs to another configuration (the message lists the first keys and shapes that do not match), if
            `config` describes no network that can be converted, or if `raw` is set for a file that is no `.pth`.
    """
    path = Path(checkpoint)
    name, options, scheduler_options = read_configuration(config)
    try:
        network = CLASSES[name](**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`config` (option `--config`) {config!r} does not describe a network: {error}") from error
    if raw and path.suffix != ".pth":
        raise ValueError(
            f"`raw` (option `--raw`) needs a .pth of PFGM or score_sde, which has EMA weights and those of the last "
            f"step, but `checkpoint` is {path.name}. Leave it out."
        )
    tensors = _read(path, raw)
    if name == "NCSNpp":
        tensors = rename_score_sde(tensors, network)
    else:
        tensors = {
            key.removeprefix("model."): value
            for key, value in tensors.items()
            if key.startswith("model.") and not key.endswith("resample_filter")
        }
    _check_match(path, tensors, network.state_dict())
    network.load_state_dict(tensors)
    return Conversion(network.eval(), dict(scheduler_options))


def _read(path: Path, raw: bool) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint under the authors' names."""
    if not path.is_file():
        raise ValueError(f"`checkpoint` (option `--checkpoint`) {str(path)!r} is not a file.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} was not read: {error}.") from error
    return _read_edm(path) if path.suffix == ".pkl" else _read_score_sde(path, raw)


def _read_edm(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the EMA network in a `.pkl` of EDM or PFGM++."""
    content = read_pickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("ema"), dict):
        raise ValueError(f"{path} has no network under 'ema', so it is not a network of EDM or PFGM++.")
    try:
        return state_dict_of(content["ema"])
    except (AttributeError, RecursionError) as error:  # attributes of other kinds, or a module inside itself
        raise ValueError(f"{path} is damaged: the modules under 'ema' are not those of a network.") from error


def _read_score_sde(path: Path, raw: bool) -> dict[str, torch.Tensor]:
    """The EMA weights, or if `raw` the weights of the last step, in a `.pth` of PFGM or score_sde."""
    try:
        check_archive(path)
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # zip, pickle and torch each raise their own
        raise ValueError(f"{path} was not read: {type(error).__name__}: {error}.") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        raise ValueError(f"{path} has no weights under 'model', so it is no checkpoint of PFGM or score_sde.")
    for key, value in content["model"].items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{path} is damaged: {key!r} under 'model' is not the name of a tensor.")
    tensors = {key.removeprefix("module."): value for key, value in content["model"].items()}
    if raw:
        return tensors
    # The EMA weights are a list in the order of the trained parameters.
    names = [key for key in tensors if is_averaged(key)]
    ema = content.get("ema")
    ema_weights = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if (
        not isinstance(ema_weights, list)
        or len(ema_weights) != len(names)
        or not all(isinstance(weight, torch.Tensor) for weight in ema_weights)
    ):
        raise ValueError(
            f"{path} does not have EMA weights of all {len(names)} parameters under 'ema'. Pass `raw=True` (option "
            "`--raw`) to convert the weights of the last step."
        )
    return tensors | dict(zip(names, ema_weights, strict=True))


def _check_match(path: Path, tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Check that the tensors of a checkpoint are real numbers with the names and shapes of the network's weights."""
    problems = [f"{key} is missing" for key in expected if key not in tensors]
    problems += [f"{key} is not in the network" for key in tensors if key not in expected]
    problems += [
        f"{key} has the shape {tuple(tensor.shape)} instead of {tuple(expected[key].shape)}"
        for key, tensor in tensors.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    problems += [f"{key} is of {tensor.dtype}" for key, tensor in tensors.items() if not tensor.is_floating_point()]
    if problems:
        more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(
            f"{path} belongs to another configuration: {'; '.join(problems[:SHOWN])}{more}. Pass the configuration "
            "of this checkpoint as `config` (option `--config`)."
        )
