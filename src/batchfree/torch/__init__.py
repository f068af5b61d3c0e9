"""Group Norm and Weight Standardization for PyTorch.

    from batchfree.torch import GroupNorm, WSConv2d

Names, argument order, defaults and `state_dict` keys are torch's own, so that either loads the other's weights.
"""

from batchfree.errors import require as _require

_require("torch", "torch")

from batchfree.torch._fold import fold  # noqa: E402 (after the check for torch)
from batchfree.torch._group_norm import Activation, GroupNorm, group_norm  # noqa: E402
from batchfree.torch._kernel_info import KernelInfo, kernel_info  # noqa: E402
from batchfree.torch._moments import Moments, apply_moments, merge_moments, moments  # noqa: E402
from batchfree.torch._weight_standardization import (  # noqa: E402
    WSConv1d,
    WSConv2d,
    WSConv3d,
    standardize_weight,
)

__all__ = [
    "Activation",
    "GroupNorm",
    "KernelInfo",
    "Moments",
    "WSConv1d",
    "WSConv2d",
    "WSConv3d",
    "apply_moments",
    "fold",
    "group_norm",
    "kernel_info",
    "merge_moments",
    "moments",
    "standardize_weight",
]
