"""An emulated MPS device: CPU tensors that refuse what MPS of the oldest supported torch does not support.

Within `MPSPolicy()` the device "mps:0" exists. Its tensors are computed on the CPU, but refuse

- float64 and complex128, which MPS does not have;
- a copy to the CPU that also converts to one of them;
- functions that torch 2.6 does not implement for MPS;
- tensors of more than one number from another device, or of any size in `cat` and `stack`, as CUDA does too, and
  generators of another device.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from tests.device_reads import READS

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

# The names of the operations that copied between host and device or read a value. The host waits for each of them.
transfers: list[str] = []


class MPSTensor(torch.Tensor):
    """A tensor on the emulated device, whose numbers are in `values` on the CPU."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls: type[MPSTensor], values: torch.Tensor) -> MPSTensor:
        if values.dtype in WIDE:
            raise TypeError(
                f"Cannot convert a MPS Tensor to {values.dtype} dtype as the MPS framework doesn't support float64."
            )
        # C++ receives "meta", which autograd treats as a device without streams.
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device="meta"
        )
        tensor.values = values
        return tensor

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS

    def tolist(self) -> Any:
        transfers.append("tolist")
        return self.values.tolist()

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"MPSTensor({self.values})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return compute(func, args, kwargs or {})


class MPSGenerator(torch.Generator):
    """A generator of the emulated device."""

    # By address, since functions receive another Python object for the same generator.
    known: dict[int, MPSGenerator] = {}

    def __init__(self) -> None:
        super().__init__()
        self.known[self._cdata] = self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS


def compute(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Compute the result of a function on the CPU, and return it on the device on which it should be."""
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    device = kwargs.get("device")
    name = func.overloadpacket.__name__
    from_mps = any(isinstance(each, MPSTensor) for each in tensors)
    to_mps = from_mps if device is None else torch.device(device).type in ("mps", "meta")  # C++ passes "meta"
    if not (from_mps or to_mps):
        return func(*args, **kwargs)
    if name in MISSING:
        raise NotImplementedError(f"The operator 'aten::{name}' is not currently implemented for the MPS device.")
    copies = name in ("_to_copy", "copy_")
    places = {isinstance(each, MPSTensor) for each in tensors[:2]} if name == "copy_" else {from_mps, to_mps}
    masks = name.startswith("index") and any(each.dtype == torch.bool for each in tensors[1:])
    if (copies and len(places) > 1) or (from_mps and (name in READS or masks)):
        transfers.append(name)
    joins = name in ("cat", "stack")  # these refuse single numbers of another device too
    if not copies and any(not isinstance(each, MPSTensor) and (each.ndim or joins) for each in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} found mps:0 and cpu.")
    if from_mps and not to_mps and kwargs.get("dtype") in WIDE:
        raise TypeError(f"Cannot copy from MPS and convert to {kwargs['dtype']} at once.")
    args, kwargs = tree_map(lambda each: each.values if isinstance(each, MPSTensor) else each, (args, kwargs))
    if device is not None:
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
    """The context in which the emulated device exists."""

    def __enter__(self) -> MPSPolicy:
        self.previous = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # so that `torch.tensor(..., device="mps")` is dispatched here
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        torch._C._set_only_lift_cpu_tensors(self.previous)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is not None:
            generator_type = "mps" if generator._cdata in MPSGenerator.known else "cpu"
            device_type = torch.device(kwargs.get("device") or "cpu").type.replace("meta", "mps")
            if generator_type != device_type:
                raise RuntimeError(
                    f"Expected a '{device_type}' device type for generator but found '{generator_type}'."
                )
        return compute(func, args, kwargs)
