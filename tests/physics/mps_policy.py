"""A stand-in for an MPS device: tensors computed on the CPU that refuse what MPS of the oldest supported torch lacks.

Within `MPSPolicy()` the device "mps:0" exists. Its tensors compute on the CPU, but refuse

- float64 and complex128, of which MPS has none;
- a copy to the CPU that changes to one of them on the way;
- functions that torch 2.6 does not implement for MPS;
- tensors of more than one number from another device, and generators of another device.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

MPS = torch.device("mps", 0)
WIDE = (torch.float64, torch.complex128)
# In torch 2.6 `native_functions.yaml` has no MPS kernel for these.
MISSING = (
    "_linalg_eigh",
    "_linalg_solve_ex",
    "_linalg_svd",
    "_standard_gamma",
    "geqrf",
    "linalg_cholesky_ex",
    "linalg_lstsq",
    "linalg_lu_factor_ex",
    "linalg_qr",
    "logspace",
    "take",
    "unique_dim",
)


class MPSTensor(torch.Tensor):
    """A tensor on the stand-in, whose numbers lie in `values` on the CPU."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls: type[MPSTensor], values: torch.Tensor) -> MPSTensor:
        if values.dtype in WIDE:
            raise TypeError(
                f"Cannot convert a MPS Tensor to {values.dtype} dtype as the MPS framework doesn't support float64."
            )
        # "meta" for C++, where autograd treats it as a device without streams.
        found = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device="meta"
        )
        found.values = values
        return found

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS

    def tolist(self) -> Any:
        return self.values.tolist()

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"MPSTensor({self.values})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return computed(func, args, kwargs or {})


class MPSGenerator(torch.Generator):
    """A generator of the stand-in."""

    known: dict[int, MPSGenerator] = {}  # by address, since a function is given another Python object for the same

    def __init__(self) -> None:
        super().__init__()
        self.known[self._cdata] = self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS


def computed(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The result of a function on the CPU, on the device where it belongs."""
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    given, name = kwargs.get("device"), func.overloadpacket.__name__
    from_mps = any(isinstance(each, MPSTensor) for each in tensors)
    to_mps = from_mps if given is None else torch.device(given).type in ("mps", "meta")  # as C++ takes it to be
    if not (from_mps or to_mps):
        return func(*args, **kwargs)
    if name in MISSING:
        raise NotImplementedError(f"The operator 'aten::{name}' is not currently implemented for the MPS device.")
    copies = name in ("_to_copy", "copy_")
    if not copies and any(not isinstance(each, MPSTensor) and each.ndim for each in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} found mps:0 and cpu.")
    if from_mps and not to_mps and kwargs.get("dtype") in WIDE:
        raise TypeError(f"Cannot copy from MPS and convert to {kwargs['dtype']} at once.")
    args, kwargs = tree_map(lambda each: each.values if isinstance(each, MPSTensor) else each, (args, kwargs))
    if given is not None:
        kwargs["device"] = torch.device("cpu")
    if name == "copy_" and not isinstance(tensors[0], MPSTensor):
        func(*args, **kwargs)
        return tensors[0]
    result = func(*args, **kwargs)
    if not to_mps:
        return result
    if name.endswith("_") and isinstance(tensors[0], MPSTensor) and not name.endswith("__"):
        return tensors[0]
    return tree_map(lambda each: MPSTensor(each) if isinstance(each, torch.Tensor) else each, result)


class MPSPolicy(TorchDispatchMode):
    """The context in which the stand-in exists."""

    def __enter__(self) -> MPSPolicy:
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # so that `torch.tensor(..., device="mps")` passes through here
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        torch._C._set_only_lift_cpu_tensors(self.before)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is not None:
            there = "mps" if generator._cdata in MPSGenerator.known else "cpu"
            place = torch.device(kwargs.get("device") or "cpu").type.replace("meta", "mps")
            if there != place:
                raise RuntimeError(f"Expected a '{place}' device type for generator but found '{there}'.")
        return computed(func, args, kwargs)
