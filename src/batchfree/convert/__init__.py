"""Networks built with Batch Norm, without the batch.

from batchfree.convert import convert, plan_conversion
"""

from batchfree.errors import require as _require

_require("torch", "torch")

from batchfree.convert._convert import convert  # noqa: E402 (after the check for torch)
from batchfree.convert._groups import Groups, Norm  # noqa: E402
from batchfree.convert._layers import Affine  # noqa: E402
from batchfree.convert._plan import ConversionPlan, PlanRow, Ws, plan_conversion  # noqa: E402
from batchfree.convert._standardize import standardize_weights  # noqa: E402

__all__ = [
    "Affine",
    "ConversionPlan",
    "Groups",
    "Norm",
    "PlanRow",
    "Ws",
    "convert",
    "plan_conversion",
    "standardize_weights",
]
