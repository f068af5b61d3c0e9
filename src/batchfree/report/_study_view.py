"""What the page says about one study, computed; the templates only write it down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from batchfree.records import CellRecord, Comparison, StudyRecord
from batchfree.report._advice import advise
from batchfree.report._arms import LOST, Arm, Arms, cell_state, gather_arms
from batchfree.report._bars_figure import bars_figure
from batchfree.report._comparison import AGAINST_BATCH_NORM, AGAINST_ITSELF, Difference, compare
from batchfree.report._curve_figure import training_figure, validation_figure
from batchfree.report._error_figure import groups_figure, norm_batch_figure
from batchfree.report._figure import Figure
from batchfree.report._findings import findings
from batchfree.report._fine_tuning_figure import fine_tuning_figure
from batchfree.report._percentile_figure import percentile_figure
from batchfree.report._provenance import environment_text, environments, provenance
from batchfree.report._published import Exhibit, published_exhibits
from batchfree.report._statistics import standard_deviation
from batchfree.report._wording import enumerated, length, magnitude, model_name, p_value, plural, signed_points

__all__ = ["StudyView", "view_study"]


@dataclass(frozen=True)
class DifferenceRow:
    """A row of a table of differences: the numbers and what is to be known about them."""

    difference: Difference
    mean: str
    interval: str
    p_value: str
    note: str


@dataclass(frozen=True)
class Family:
    """One comparison: its rows by reference."""

    title: str
    reference: str  # what was compared with, in words
    blocks: tuple[tuple[str, tuple[DifferenceRow, ...]], ...]
    tests: int  # how many were corrected together

    @property
    def has_notes(self) -> bool:
        """Whether the table needs a column for them."""
        return any(row.note for _, rows in self.blocks for row in rows)


@dataclass(frozen=True)
class MeanRow:
    """An arm's error and what it costs; the ratios are to Batch Norm under the same settings."""

    arm: Arm
    deviation: str
    time_ratio: str
    memory_ratio: str


@dataclass(frozen=True)
class StudyView:
    """One study's part of the page."""

    key: str  # prefix of its ids, and the folder of its figures where there are several studies
    title: str
    facts: str
    study: StudyRecord
    cells: tuple[CellRecord, ...]
    arms: Arms
    done: int
    missing: int
    lost: str  # "1 run diverged and 2 runs out of memory"; empty where none is
    seeds: int
    has_rule: bool
    sentences: tuple[str, ...]
    figures: tuple[Figure, ...]
    exhibits: tuple[Exhibit, ...]
    has_exhibit_drawn: bool
    families: tuple[Family, ...]
    means: tuple[MeanRow, ...]
    provenance: list[tuple[str, str]]
    environments: list[tuple[str, int]]

    @property
    def has_initial(self) -> bool:
        """Whether runs started from a trained network, so that they have an error before their first step."""
        return any(cell.config.pretraining is not None for cell in self.cells)

    @property
    def has_recomputed(self) -> bool:
        """Whether runs were also evaluated with statistics recomputed."""
        return any(arm.is_recomputed for arm in self.arms.all)

    def label(self, cell: CellRecord) -> str:
        """The label of the cell's arm, or what it is to the others."""
        return "pre-training" if cell.config.keeps_weights else Arm(self.arms.axes, (cell,)).label

    def environment_number(self, cell: CellRecord) -> str:
        """Which of `environments` the cell ran in, from 1; empty where it has not started."""
        texts = [text for text, _ in self.environments]
        return "" if cell.environment is None else str(texts.index(environment_text(cell.environment)) + 1)


def view_study(key: str, title: str, study: StudyRecord, cells: Sequence[CellRecord]) -> StudyView:
    """Everything about one study.

    Args:
        key: unique on the page.
        title: the study's, or one that tells it from another of the same name.
        study, cells: as `records.read_study` gives them.
    """
    arms = gather_arms(study, cells)
    exhibits = published_exhibits(study)
    # The rule chooses between norms at each norm batch: it has nothing to say about arms that differ in more.
    has_rule = study.report.figure == "norm-batch" and set(arms.axes) <= {"norm", "norm_batch"}
    comparisons = [(comparison, compare(arms, comparison)) for comparison in _comparisons(study, has_rule)]
    states = Counter(map(cell_state, cells))
    return StudyView(
        key=key,
        title=title,
        facts=_facts(study),
        study=study,
        cells=tuple(cells),
        arms=arms,
        done=states["done"],
        missing=states["missing"],
        lost=enumerated([f"{plural(states[state], 'run')} {state}" for state in LOST if states[state]] or [""]),
        seeds=len({cell.config.seed for cell in cells}),
        has_rule=has_rule,
        sentences=advise(arms).sentences if has_rule else findings([rows for _, rows in comparisons]),
        figures=_figures(study, arms, exhibits),
        exhibits=exhibits,
        has_exhibit_drawn=study.report.figure != "percentiles",
        families=tuple(_family(comparison, rows) for comparison, rows in comparisons),
        means=tuple(_mean_row(arm, arms) for arm in arms.all),
        provenance=provenance(study, cells),
        environments=environments(cells),
    )


def _comparisons(study: StudyRecord, has_rule: bool) -> list[Comparison]:
    """Those of the study, and those that the rule reads where the study lacks them."""
    comparisons = list(study.report.compare)
    for needed in (AGAINST_BATCH_NORM, AGAINST_ITSELF) if has_rule else ():
        if all((given.reference, given.only) != (needed.reference, needed.only) for given in comparisons):
            comparisons.append(needed)
    return comparisons


def _figures(study: StudyRecord, arms: Arms, exhibits: Sequence[Exhibit]) -> tuple[Figure, ...]:
    kind = study.report.figure
    if kind == "curves":
        return (training_figure(arms, exhibits),)  # the validation curves are in it
    if kind == "fine-tuning":
        return fine_tuning_figure(arms), bars_figure(arms, exhibits)
    if kind == "norm-batch":
        first = norm_batch_figure(arms, exhibits)
    elif kind == "groups":
        first = groups_figure(arms, exhibits)
    elif kind == "percentiles":
        first = percentile_figure(arms)
    else:
        first = bars_figure(arms, exhibits)
    return first, validation_figure(arms)


def _facts(study: StudyRecord) -> str:
    if not study.cells:
        return "no runs"
    cells = [cell for cell in study.cells if not cell.keeps_weights]
    models = enumerated(list(dict.fromkeys(model_name(cell.model) for cell in cells)))
    data = enumerated(list(dict.fromkeys(cell.data for cell in cells)))
    images = enumerated(list(dict.fromkeys(f"{cell.train_images:,}" for cell in cells)))
    epochs = enumerated(list(dict.fromkeys(map(length, cells))))
    return f"{models} on {data}, {images} training images, {epochs}"


def _family(comparison: Comparison, rows: Sequence[Difference]) -> Family:
    blocks: dict[str, list[DifferenceRow]] = {}
    for row in rows:
        blocks.setdefault(row.reference.label, []).append(_difference_row(row))
    return Family(
        title=comparison.title,
        reference=", ".join(f"{axis} = {value}" for axis, value in comparison.reference.items()),
        blocks=tuple((label, tuple(members)) for label, members in blocks.items()),
        tests=sum(row.p_value is not None for row in rows),
    )


def _difference_row(difference: Difference) -> DifferenceRow:
    interval = "none"
    if difference.interval is not None:
        low, high = difference.interval
        interval = f"{signed_points(low)} to {signed_points(high)}"
    notes = []
    if difference.interval is None and len(difference.seeds) >= 2:
        notes.append("every pair gives the same difference, so there is no spread to make an interval of")
    for lost, name in (
        (difference.reference_lost, difference.reference.label),
        (difference.arm_lost, difference.arm_label),
    ):
        if lost:
            notes.append(f"{name} ended without a result in {plural(len(lost), 'more seed')}")
    corrected = p_value(difference.holm_p_value) or "none"
    return DifferenceRow(difference, signed_points(difference.mean) or "none", interval, corrected, "; ".join(notes))


def _mean_row(arm: Arm, arms: Arms) -> MeanRow:
    reference = None if arm.is_recomputed else arms.cost_reference(arm)

    def ratio(ours: float | None, theirs: float | None) -> str:
        return "" if ours is None or not theirs else f"×\u00a0{ours / theirs:.2f}"

    return MeanRow(
        arm=arm,
        deviation=magnitude(standard_deviation(list(arm.errors.values()))),
        time_ratio="" if reference is None else ratio(arm.milliseconds_per_step, reference.milliseconds_per_step),
        memory_ratio="" if reference is None else ratio(arm.peak_memory_mib, reference.peak_memory_mib),
    )
