"""Group Normalization and Weight Standardization for Keras 3, on TensorFlow, JAX and torch.

    from batchfree.keras import GroupNormalization

Names, argument order and defaults are Keras's own, and either layer loads the other's weights.
"""

from batchfree.errors import require as _require

_require("keras", "keras")

from batchfree.keras import functional  # noqa: E402 (after the check for keras)
from batchfree.keras._convert import convert  # noqa: E402
from batchfree.keras._group_normalization import GroupNormalization  # noqa: E402
from batchfree.keras._weight_standardization import (  # noqa: E402
    WeightStandardizedConv1D,
    WeightStandardizedConv2D,
    WeightStandardizedConv3D,
)

__all__ = [
    "GroupNormalization",
    "WeightStandardizedConv1D",
    "WeightStandardizedConv2D",
    "WeightStandardizedConv3D",
    "convert",
    "functional",
]
