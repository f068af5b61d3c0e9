"""Studies: the same network trained with several norms, one subprocess per run.

from batchfree.study import NormBatchSettings, run_study
"""

from batchfree.errors import require as _require

for _module in ("torch", "pydantic", "PIL"):
    _require(_module, "study")

from batchfree.study._cell import run_cell  # noqa: E402 (after the checks for the extra)
from batchfree.study._data import DATA_SETS  # noqa: E402
from batchfree.study._models import MODELS  # noqa: E402
from batchfree.study._norm_batch import NormBatchSettings  # noqa: E402
from batchfree.study._runner import PARENT_VARIABLE, Progress, run_study  # noqa: E402

__all__ = ["DATA_SETS", "MODELS", "PARENT_VARIABLE", "NormBatchSettings", "Progress", "run_cell", "run_study"]
