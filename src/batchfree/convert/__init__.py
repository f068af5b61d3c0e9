"""Networks built with Batch Norm, trained ones included, without the batch.

from batchfree.convert import calibrate, convert, plan_conversion, recover
"""

from batchfree.errors import require as _require

_require("torch", "torch")

from batchfree.convert._calibrate import Choice, calibrate  # noqa: E402 (after the check for torch)
from batchfree.convert._calibration_report import CalibrationReport, CalibrationRow  # noqa: E402
from batchfree.convert._convert import Eps, convert  # noqa: E402
from batchfree.convert._groups import Groups, Norm  # noqa: E402
from batchfree.convert._layers import Affine  # noqa: E402
from batchfree.convert._plan import ConversionPlan, PlanRow, Ws, plan_conversion  # noqa: E402
from batchfree.convert._recover import RecoveryReport, Trained, recover  # noqa: E402
from batchfree.convert._standardize import standardize_weights  # noqa: E402

__all__ = [
    "Affine",
    "CalibrationReport",
    "CalibrationRow",
    "Choice",
    "ConversionPlan",
    "Eps",
    "Groups",
    "Norm",
    "PlanRow",
    "RecoveryReport",
    "Trained",
    "Ws",
    "calibrate",
    "convert",
    "plan_conversion",
    "recover",
    "standardize_weights",
]
