"""The layers' mathematics without layers: tensors in, tensors out, on any Keras backend."""

from batchfree.keras._group_norm import group_norm
from batchfree.keras._weight_standardization import standardize_kernel

__all__ = ["group_norm", "standardize_kernel"]
