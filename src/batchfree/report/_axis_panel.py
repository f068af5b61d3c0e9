"""A panel "error against an axis": every seed a point, a line through the means."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from batchfree.report._arms import LOST, Arm
from batchfree.report._figure import DASHES, GREY, LOOKS, strip_axes
from batchfree.report._wording import SHORT_NAMES, AxisValue, magnitude, percent

__all__ = ["axis_words_of", "draw_axis_panel"]

#: Between the points of two series that share a column, in columns.
STEP = 0.13
#: Between the labels of two lines, as a part of the panel's height.
LABEL_GAP = 0.045


def draw_axis_panel(axes: Axes, arms: Sequence[Arm], axis: str, *, title: str, label: str, said: Sequence[str]) -> None:
    """Error against `axis`, large at the left and small at the right as in the paper.

    An arm that does not see the axis is a horizontal line over the whole range, with its seeds in a column "any".

    Args:
        label: of the axis.
        said: the axes that the title says already.
    """
    if not any(arm.errors for arm in arms):
        strip_axes(axes, "No run has finished yet")
        return
    columns = _columns(arms, axis)
    if columns[-1] is None and len(columns) > 1:
        axes.axvspan(len(columns) - 1.5, len(columns) - 0.5, color="#f4f4f4", linewidth=0)
    series = _series(arms, axis)
    for members in series:
        points = [(columns.index(_column(arm, axis)) + _shift(arm, members, series, axis), arm) for arm in members]
        for position, arm in points:
            _draw_seeds(axes, arm, position)
        _draw_means(axes, points, axis, len(columns))
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_xticks(range(len(columns)), ["any" if column is None else str(column) for column in columns])
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))
    axes.set_xlabel(label)
    axes.set_ylabel("validation error (%)")
    axes.set_title(title, loc="left", color="#222222")
    _mark_lost_runs(axes, arms, columns, axis)
    _label_lines(axes, [arm for arm in arms if not arm.sees(axis)], said)


def axis_words_of(arms: Sequence[Arm], axis: str, any_value: str, said: Sequence[str] = ()) -> str:
    """The means of such a panel in words: each series with its errors by value of the axis."""
    parts = []
    for members in _series(arms, axis):
        means = [
            f"{percent(arm.mean_error)} at {arm.value(axis) if arm.sees(axis) else any_value}"
            for arm in members
            if arm.mean_error is not None
        ]
        parts.append(f"{members[0].label_without(axis, *said)} {', '.join(means) or 'has no finished run'}")
    return "; ".join(parts)


def _column(arm: Arm, axis: str) -> AxisValue:
    return arm.value(axis) if arm.sees(axis) else None


def _columns(arms: Sequence[Arm], axis: str) -> list[AxisValue]:
    found = {_column(arm, axis) for arm in arms}
    numbers = sorted((value for value in found if isinstance(value, int)), reverse=True)
    words = sorted(value for value in found if isinstance(value, str))
    return [*numbers, *words, *([None] if None in found else [])]


def _series(arms: Sequence[Arm], axis: str) -> list[list[Arm]]:
    """The arms that differ in nothing but `axis`: one line each."""
    found: dict[str, list[Arm]] = {}
    for arm in arms:
        found.setdefault(arm.label_without(axis), []).append(arm)
    return list(found.values())


def _shift(arm: Arm, own: list[Arm], series: Sequence[list[Arm]], axis: str) -> float:
    """Series that share a column stand side by side in it."""
    column = _column(arm, axis)
    sharing = [members for members in series if any(_column(other, axis) == column for other in members)]
    place = next(index for index, members in enumerate(sharing) if members is own)
    return (place - (len(sharing) - 1) / 2) * STEP


def _draw_seeds(axes: Axes, arm: Arm, position: float) -> None:
    errors = list(arm.errors.values())
    look = LOOKS[arm.norm]
    axes.plot(
        [position] * len(errors),
        errors,
        linestyle="none",
        marker=look.marker,
        color="white" if arm.is_recomputed else look.colour,
        markeredgecolor=look.colour if arm.is_recomputed else "white",
        markersize=5 if arm.is_recomputed else 6,
        alpha=0.75,
        zorder=3,
    )


def _draw_means(axes: Axes, points: Sequence[tuple[float, Arm]], axis: str, columns: int) -> None:
    positions, means = [], []
    colour = LOOKS[points[0][1].norm].colour
    for position, arm in points:
        mean = math.nan if arm.mean_error is None else arm.mean_error  # NaN leaves a gap in the line
        if not arm.sees(axis):
            axes.plot([-0.5, columns - 0.5], [mean, mean], color=colour, linewidth=1.4, zorder=2)
        else:
            positions.append(position)
            means.append(mean)
    dashes = DASHES if points[0][1].is_recomputed else "solid"
    axes.plot(positions, means, color=colour, linewidth=1.8, linestyle=dashes, zorder=2)


def _label_lines(axes: Axes, arms: Sequence[Arm], said: Sequence[str]) -> None:
    """The name and mean of each horizontal line at its right end; labels of near lines move apart."""
    low, high = axes.get_ylim()
    labelled = sorted(((arm.mean_error, arm) for arm in arms if arm.mean_error is not None), key=lambda pair: pair[0])
    heights = _spread([mean for mean, _ in labelled], LABEL_GAP * (high - low))
    for (mean, arm), height in zip(labelled, heights, strict=True):
        axes.annotate(
            f"{arm.label_without(*said)} {magnitude(mean)}",
            (1.0, height),
            xycoords=axes.get_yaxis_transform(),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=LOOKS[arm.norm].colour,
            annotation_clip=False,
        )


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Ascending `values` moved as little as needed to stand at least `gap` apart, clusters staying centred."""
    clusters: list[list[float]] = []
    for value in values:
        clusters.append([value])
        while len(clusters) > 1 and _centred(clusters[-1], gap)[0] - _centred(clusters[-2], gap)[-1] < gap:
            merged = clusters.pop(-2) + clusters.pop()
            clusters.append(merged)
    return [height for cluster in clusters for height in _centred(cluster, gap)]


def _centred(cluster: Sequence[float], gap: float) -> list[float]:
    start = sum(cluster) / len(cluster) - gap * (len(cluster) - 1) / 2
    return [start + gap * i for i in range(len(cluster))]


def _mark_lost_runs(axes: Axes, arms: Sequence[Arm], columns: Sequence[AxisValue], axis: str) -> None:
    """Runs that ended without a result have no point; the column says so instead of looking complete."""
    notes: dict[int, list[str]] = {}
    for arm in arms:
        lost = 0 if arm.is_recomputed else len(arm.seeds(*LOST))
        if lost:
            note = f"{SHORT_NAMES[arm.norm]}: {lost} of {len(arm.cells)}\nwithout result"
            notes.setdefault(columns.index(_column(arm, axis)), []).append(note)
    if not notes:
        return
    low, high = axes.get_ylim()
    lines = 2 * max(map(len, notes.values()))
    axes.set_ylim(low, high + (high - low) * 0.06 * lines)
    for column, texts in notes.items():
        transform = axes.get_xaxis_transform()
        axes.text(column, 0.99, "\n".join(texts), transform=transform, ha="center", va="top", fontsize=7, color=GREY)
