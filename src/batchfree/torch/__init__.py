"""Group Norm and Weight Standardization for PyTorch.

    from batchfree.torch import GroupNorm, WSConv2d

Names, argument order, defaults and `state_dict` keys are torch's own, so that either loads the other's weights.
"""

from batchfree.errors import require as _require

_require("torch", "torch")

from batchfree.torch._group_norm import Activation, GroupNorm, group_norm  # noqa: E402 (after the check for torch)
from batchfree.torch._weight_standardization import (  # noqa: E402
    WSConv1d,
    WSConv2d,
    WSConv3d,
    fold,
    standardize_weight,
)

__all__ = ["Activation", "GroupNorm", "WSConv1d", "WSConv2d", "WSConv3d", "fold", "group_norm", "standardize_weight"]
