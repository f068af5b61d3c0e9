"""Finished or half-finished studies as one page, a table and figures; needs no framework.

`build_report` writes them. The rest is what the page is computed from, for whoever wants the numbers:
`compare(gather_arms(study, cells), comparison)` with what `batchfree.records.read_study` gives.
"""

from batchfree.errors import require as _require

_require("matplotlib", "study")

from batchfree.report._advice import Advice, Choice, advise  # noqa: E402 (after the check for the extra)
from batchfree.report._arms import Arm, Arms, gather_arms  # noqa: E402
from batchfree.report._build import build_report  # noqa: E402
from batchfree.report._comparison import Difference, compare  # noqa: E402
from batchfree.report._published import Exhibit, PublishedSeries, published_exhibits  # noqa: E402
from batchfree.report._results_csv import results_csv  # noqa: E402
from batchfree.report._statistics import holm, paired_p_value, student_interval  # noqa: E402

__all__ = [
    "Advice",
    "Arm",
    "Arms",
    "Choice",
    "Difference",
    "Exhibit",
    "PublishedSeries",
    "advise",
    "build_report",
    "compare",
    "gather_arms",
    "holm",
    "paired_p_value",
    "published_exhibits",
    "results_csv",
    "student_interval",
]
