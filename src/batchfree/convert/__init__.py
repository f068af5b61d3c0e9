"""Networks built with Batch Norm, without the batch.

from batchfree.convert import convert
"""

from batchfree.errors import require as _require

_require("torch", "torch")

from batchfree.convert._convert import Affine, Groups, Norm, convert, standardize_weights  # noqa: E402 (after the check for torch)

__all__ = ["Affine", "Groups", "Norm", "convert", "standardize_weights"]
