"""Families of seed-paired differences between arms, with verdicts that are corrected for being many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from batchfree.records import Comparison
from batchfree.report._arms import LOST, Arm, Arms
from batchfree.report._statistics import holm, paired_p_value, student_interval
from batchfree.report._wording import AxisValue

__all__ = ["AGAINST_BATCH_NORM", "AGAINST_ITSELF", "Difference", "Verdict", "compare"]

#: "better" is a lower error. "too few seeds": fewer than two pairs, so no interval exists.
Verdict: TypeAlias = Literal["better", "worse", "not resolved", "too few seeds"]

#: The chance, over a whole family, that a difference is called resolved where there is none.
ALPHA = 0.05

AGAINST_BATCH_NORM = Comparison(title="Differences from Batch Norm", reference={"norm": "bn"})
AGAINST_ITSELF = Comparison(title="Batch Norm against itself", reference={"norm_batch": "largest"}, only={"norm": "bn"})


@dataclass(frozen=True)
class Difference:
    """Error of an arm minus error of its reference, in points of percent, over the seeds that both finished."""

    arm: Arm
    reference: Arm
    seeds: tuple[int, ...]
    mean: float | None  # None without a pair
    interval: tuple[float, float] | None  # 95 %, by itself; None with fewer than two pairs, or where all are equal
    p_value: float | None  # of the paired t test, by itself; None where the interval is
    holm_p_value: float | None  # the same, corrected over the family
    verdict: Verdict
    reference_lost: tuple[int, ...]  # seeds that the arm finished and in which the reference ended without a result
    arm_lost: tuple[int, ...]  # the other way round

    @property
    def arm_label(self) -> str:
        """The arm in the axes that its reference does not say already."""
        shared = (axis for axis in self.arm.axes if self.arm.sees(axis) and self.reference.sees(axis))
        return self.arm.label_without(*(axis for axis in shared if self.arm.value(axis) == self.reference.value(axis)))


def compare(arms: Arms, comparison: Comparison) -> tuple[Difference, ...]:
    """Each arm minus the arm that has the values of `comparison.reference` and equals it in all other axes.

    An axis that one of the two cannot see (the norm batch for Group Norm, the groups for Batch Norm) is no hindrance:
    such an arm is compared with every reference it fits. An arm with statistics recomputed is compared with its own
    runs evaluated as usual where the norm is what is compared, else with arms of its own kind.

    Returns:
        The family, in the order of the references and then of the arms. A verdict is "better" or "worse" where Holm's
        correction over the family leaves the paired t test's p value at 0.05 or below.
    """
    wanted = {axis: _meant(arms, axis, value) for axis, value in comparison.reference.items()}
    only = {axis: _each_meant(arms, axis, values) for axis, values in comparison.only.items()}
    other = tuple(axis for axis in arms.axes if axis not in wanted)
    references = [arm for arm in arms.all if _is_reference(arm, wanted)]
    return _judged(
        [
            paired_difference(arm, reference)
            for reference in references
            for arm in arms.all
            if all(_is_any(arm.value(axis), values) for axis, values in only.items())
            and not _is_reference(arm, wanted)
            and ("norm" in wanted or arm.is_recomputed == reference.is_recomputed)
            and arm.agrees_with(reference, other)
        ]
    )


def paired_difference(arm: Arm, reference: Arm) -> Difference:
    """`arm` minus `reference`, seed by seed; its verdict waits for its family."""
    ours, theirs = arm.errors, reference.errors
    seeds = tuple(seed for seed in ours if seed in theirs)
    values = [ours[seed] - theirs[seed] for seed in seeds]
    return Difference(
        arm=arm,
        reference=reference,
        seeds=seeds,
        mean=sum(values) / len(values) if values else None,
        interval=student_interval(values),
        p_value=paired_p_value(values),
        holm_p_value=None,
        verdict="too few seeds" if len(values) < 2 else "not resolved",
        reference_lost=tuple(seed for seed in reference.seeds(*LOST) if seed in ours),
        arm_lost=tuple(seed for seed in arm.seeds(*LOST) if seed in theirs),
    )


def _judged(family: Sequence[Difference]) -> tuple[Difference, ...]:
    corrected = iter(holm([difference.p_value for difference in family if difference.p_value is not None]))
    judged = []
    for difference in family:
        if difference.p_value is None or difference.mean is None:
            judged.append(difference)
            continue
        p_value = next(corrected)
        resolved: Verdict = "better" if difference.mean < 0 else "worse"
        verdict = resolved if p_value <= ALPHA else "not resolved"
        judged.append(replace(difference, holm_p_value=p_value, verdict=verdict))
    return tuple(judged)


def _is_reference(arm: Arm, wanted: Mapping[str, AxisValue]) -> bool:
    return _has(arm, wanted) and not ("norm" in wanted and arm.is_recomputed)


def _has(arm: Arm, values: Mapping[str, AxisValue]) -> bool:
    return all(_is_same(arm.value(axis), value) for axis, value in values.items())


def _is_any(given: AxisValue, wanted: Sequence[AxisValue]) -> bool:
    return any(_is_same(given, value) for value in wanted)


def _is_same(given: AxisValue, wanted: AxisValue) -> bool:
    # Learning rates are products, so they carry a rounding error.
    if isinstance(given, float) and isinstance(wanted, float | int):
        return math.isclose(given, wanted, rel_tol=1e-9)
    return given == wanted


def _each_meant(arms: Arms, axis: str, values: AxisValue | tuple[AxisValue, ...]) -> tuple[AxisValue, ...]:
    return tuple(_meant(arms, axis, value) for value in (values if isinstance(values, tuple) else (values,)))


def _meant(arms: Arms, axis: str, value: AxisValue) -> AxisValue:
    """The value that "largest" and "none" stand for; "none" is also the name of a norm."""
    if value == "largest":
        numbers = [v for arm in arms.all if isinstance(v := arm.value(axis), int | float)]
        return max(numbers, default=None)
    return None if value == "none" and axis != "norm" else value
