"""Studies: the same network trained with several norms, one process per run.

from batchfree.study import load_study, run_study
"""

from batchfree.errors import require as _require

for _module in ("torch", "pydantic", "PIL"):
    _require(_module, "study")

from batchfree.study._cell import run_cell  # noqa: E402 (after the checks for the extra)
from batchfree.study._data import DATA_SETS  # noqa: E402
from batchfree.study._definition import Study, load_study  # noqa: E402
from batchfree.study._engine import PARENT_VARIABLE, Engine, LocalEngine, is_parent_gone  # noqa: E402
from batchfree.study._environment import limit_memory, size_bytes  # noqa: E402
from batchfree.study._estimate import StudyEstimate, estimate_study  # noqa: E402
from batchfree.study._memory import MemoryNeed, measure_memory  # noqa: E402
from batchfree.study._models import MODELS  # noqa: E402
from batchfree.study._ray_engine import RayEngine  # noqa: E402
from batchfree.study._run import Plan, plan_study, retry_study, run_study  # noqa: E402
from batchfree.study._runner import Limits, Progress  # noqa: E402
from batchfree.study._settings import ArmSettings  # noqa: E402
from batchfree.study._slurm_engine import SlurmEngine  # noqa: E402
from batchfree.study._study_file import STUDIES, study_text  # noqa: E402

__all__ = [
    "DATA_SETS",
    "MODELS",
    "PARENT_VARIABLE",
    "STUDIES",
    "ArmSettings",
    "Engine",
    "Limits",
    "LocalEngine",
    "MemoryNeed",
    "Plan",
    "Progress",
    "RayEngine",
    "SlurmEngine",
    "Study",
    "StudyEstimate",
    "estimate_study",
    "is_parent_gone",
    "limit_memory",
    "load_study",
    "measure_memory",
    "plan_study",
    "retry_study",
    "run_cell",
    "run_study",
    "size_bytes",
    "study_text",
]
