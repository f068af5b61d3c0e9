"""A finished or half-finished study as a page, a table and figures; needs no framework.

`build_report` writes them. The rest is what the page is computed from, for whoever wants the numbers:
`advise(gather_arms(cells))` with the cells of `batchfree.records.read_study`.
"""

from batchfree.report._advice import Advice, Choice, advise
from batchfree.report._arms import Arm, Arms, gather_arms
from batchfree.report._build import build_report
from batchfree.report._published import PublishedCurve, published_curves
from batchfree.report._results_csv import results_csv
from batchfree.report._statistics import (
    Difference,
    batch_norm_changes,
    differences_from_batch_norm,
    student_interval,
)

__all__ = [
    "Advice",
    "Arm",
    "Arms",
    "Choice",
    "Difference",
    "PublishedCurve",
    "advise",
    "batch_norm_changes",
    "build_report",
    "differences_from_batch_norm",
    "gather_arms",
    "published_curves",
    "results_csv",
    "student_interval",
]
