"""What a study and its cells are on disk: schema, writing, reading, version.

    <out>/study.json                     what the study is and its cells; an --out belongs to one study
    <out>/cells/<id>/config.json         one training run: one configuration, one seed
    <out>/cells/<id>/environment.json    versions, machine and threads it ran with
    <out>/cells/<id>/metrics.jsonl       a line per finished epoch
    <out>/cells/<id>/result.json         the outcome; written last and atomically, so its presence means finished
    <out>/cells/<id>/cost.json           seconds and memory, apart from the result, which is the same on every run

Nothing here needs a framework, so that a report can be rebuilt anywhere.
"""

from batchfree.errors import require as _require

_require("pydantic", "study")

from batchfree.records._config import (  # noqa: E402 (after the check for the extra)
    BATCH_FREE_NORMS,
    NORMS,
    STARTS,
    CellConfig,
    Half,
    Norm,
    Start,
)
from batchfree.records._files import (  # noqa: E402
    read_cell,
    read_metrics,
    read_record,
    read_study,
    write_atomically,
    write_record,
)
from batchfree.records._record import SCHEMA_VERSION, Record  # noqa: E402
from batchfree.records._schema import (  # noqa: E402
    RETRIED,
    CellRecord,
    CellResult,
    Comparison,
    Cost,
    Environment,
    EpochMetrics,
    FigureKind,
    ReportSpec,
    Status,
    StudyRecord,
    last_epochs,
    summarise,
)

__all__ = [
    "BATCH_FREE_NORMS",
    "NORMS",
    "RETRIED",
    "SCHEMA_VERSION",
    "STARTS",
    "CellConfig",
    "CellRecord",
    "CellResult",
    "Comparison",
    "Cost",
    "Environment",
    "EpochMetrics",
    "FigureKind",
    "Half",
    "Norm",
    "Record",
    "ReportSpec",
    "Start",
    "Status",
    "StudyRecord",
    "last_epochs",
    "read_cell",
    "read_metrics",
    "read_record",
    "read_study",
    "summarise",
    "write_atomically",
    "write_record",
]
