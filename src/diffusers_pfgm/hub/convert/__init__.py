"""Checkpoints of the papers' authors as networks of this package.

Their files are read without executing anything in them: `.pth` with `torch.load(weights_only=True)`, `.safetensors`,
and the `.pkl` of EDM and PFGM++ by an unpickler that makes nothing but tensors and plain containers.
"""

from .checkpoint_conversion import Conversion, convert_checkpoint

__all__ = ["Conversion", "convert_checkpoint"]
