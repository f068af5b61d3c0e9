"""What a study's comparisons say, in two plain sentences: what is resolved, and what is not."""

from __future__ import annotations

from collections.abc import Sequence

from batchfree.report._comparison import Difference
from batchfree.report._wording import plural, points

__all__ = ["findings"]

#: Differences that are told; the tables hold the rest.
TOLD = 4


def findings(families: Sequence[Sequence[Difference]]) -> tuple[str, ...]:
    """What is resolved, largest differences first, and how many comparisons are not.

    Args:
        families: the differences of each of the study's comparisons.
    """
    rows = [row for family in families for row in family]
    if not rows:
        return ("This study has no two arms to compare.",)
    resolved = [row for row in rows if row.verdict in ("better", "worse")]
    open_count = sum(row.verdict == "not resolved" for row in rows)
    untested = sum(row.verdict == "too few seeds" for row in rows)
    if untested == len(rows):
        return ("Nothing can be compared yet: no two arms share two finished seeds.",)
    sentences = [_resolved_sentence(resolved, len(rows))] if resolved else []
    if open_count:
        subject = f"Of {plural(len(rows), 'seed-paired comparison')}" if not resolved else "Of the others"
        verb = "none is" if not resolved else f"{open_count} {'is' if open_count == 1 else 'are'} not"
        sentences.append(f"{subject}, {verb} resolved, which does not mean that the arms are equal.")
    if untested:
        has = "has" if untested == 1 else "have"
        sentences.append(f"{plural(untested, 'comparison')} {has} fewer than two seeds that both arms finished.")
    return tuple(sentences)


def _resolved_sentence(resolved: Sequence[Difference], total: int) -> str:
    largest = sorted(resolved, key=lambda row: -abs(row.mean or 0.0))[:TOLD]
    told = [f"{row.arm_label} is {points(row.mean)} {row.verdict} than {row.reference.label}" for row in largest]
    more = len(resolved) - len(told)
    if more:
        told.append(f"{more} more in the tables")
    return (
        f"{len(resolved)} of {plural(total, 'seed-paired comparison')} {'is' if len(resolved) == 1 else 'are'} "
        f"resolved: {'; '.join(told)}."
    )
