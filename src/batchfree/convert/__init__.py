"""Networks built with Batch Norm, without the batch.

from batchfree.convert import calibrate, convert
"""

from batchfree.errors import require as _require

_require("torch", "torch")

from batchfree.convert._calibrate import GroupChoice, calibrate  # noqa: E402 (after the check for torch)
from batchfree.convert._calibration_report import CalibrationReport, CalibrationRow  # noqa: E402
from batchfree.convert._convert import Affine, Groups, Norm, convert, standardize_weights  # noqa: E402
from batchfree.convert._recover import RecoveryReport, Trained, recover  # noqa: E402

__all__ = [
    "Affine",
    "CalibrationReport",
    "CalibrationRow",
    "GroupChoice",
    "Groups",
    "Norm",
    "RecoveryReport",
    "Trained",
    "calibrate",
    "convert",
    "recover",
    "standardize_weights",
]
