"""The layers' mathematics without layers: tensors in, tensors out, on any Keras backend."""

from batchfree.keras._group_norm import group_norm
from batchfree.keras._standardize_kernel import standardize_kernel

__all__ = ["group_norm", "standardize_kernel"]
