"""Reading the pickles of EDM and PFGM++ without executing them.

Such a file pickles whole Python objects, with the source code of their classes. Here every object becomes a `Record` of
its attributes, and only functions that rebuild tensors and containers are called. Any other name in the file is an
error, before anything is called.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Record(dict[str, Any]):
    """The attributes of a pickled object. Nothing of its class is used."""

    def __setstate__(self, state: Any) -> None:
        self.update(state if isinstance(state, dict) else {})


def _record(*arguments: Any) -> Record:
    """The attributes of a network that EDM's module `torch_utils.persistence` would reconstruct."""
    description = arguments[0] if arguments and isinstance(arguments[0], dict) else {}
    state = description.get("state")
    return Record(state) if isinstance(state, dict) else Record()


def _storage(content: bytes) -> Any:
    file = io.BytesIO(content)
    check_archive(file)
    return torch.load(file, weights_only=True, map_location="cpu")


def check_archive(file: str | Path | io.BytesIO) -> None:
    """Check that no entry of a PyTorch file is compressed.

    PyTorch never compresses entries, so a compressed one may be a zip bomb, which fills the memory when it is unpacked.

    Raises:
        ValueError: if an entry is compressed.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        if names:
            raise ValueError(
                f"its entry {names[0]} is compressed, but PyTorch never compresses entries, so it may be a zip bomb"
            )
    if isinstance(file, io.BytesIO):
        file.seek(0)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> torch.Tensor:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor has no storage")
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, size, stride)


REBUILT: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("dnnlib.util", "EasyDict"): Record,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _record,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch.storage", "_load_from_bytes"): _storage,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in REBUILT:
            return REBUILT[module, name]
        if module.startswith("torch.nn.modules.") and name.isidentifier():
            return Record
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it uses {module}.{name}, which the weights of a network do not need")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of the file")


def read_pickle(path: Path) -> Any:
    """Return the content of a pickle, with a `Record` instead of each object.

    Raises:
        ValueError: if the file is damaged, or uses a name that is not needed to rebuild a network's weights.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path} was not read: {type(error).__name__}: {error}.") from error


def state_dict_of(record: Any) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers in the `Record` of a module by their names in its `state_dict`."""
    tensors: dict[str, torch.Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        for name, value in record.get(kind, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[str(name)] = value.detach()
    for name, child in record.get("_modules", {}).items():
        if isinstance(child, dict):
            tensors |= {f"{name}.{inner}": value for inner, value in state_dict_of(child).items()}
    return tensors
