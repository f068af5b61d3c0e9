"""Figure "error against norm batch": every seed a point, a line through the means, the paper's curves in grey."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from batchfree.records import Norm
from batchfree.report._arms import LOST, Arm, Arms
from batchfree.report._figure import GREY, LOOKS, Figure, draw_figure, norm_legend, strip_axes
from batchfree.report._published import PublishedCurve, published_curves
from batchfree.report._wording import SHORT_NAMES, magnitude, percent

__all__ = ["error_figure"]

#: Between the points of two norms that share a column, in columns.
STEP = 0.13
#: Between the labels of two lines, as a part of the panel's height.
LABEL_GAP = 0.045


def error_figure(arms: Arms) -> Figure:
    """Error against norm batch, large at the left and small at the right as in the paper.

    A norm that cannot see the norm batch is a horizontal line over the whole range, with its seeds in a column "any".
    """
    curves = published_curves()

    def wide(canvas: Canvas) -> None:
        ours, paper = canvas.subplots(1, 2, width_ratios=[2.1, 1])
        _draw_both(canvas, ours, paper, arms, curves, legend_columns=5)

    def narrow(canvas: Canvas) -> None:
        ours, paper = canvas.subplots(2, 1, height_ratios=[1.6, 1])
        _draw_both(canvas, ours, paper, arms, curves, legend_columns=3)

    return Figure(draw_figure(9.6, 4.6, wide), draw_figure(4.4, 7.0, narrow), _alt(arms, curves))


def _draw_both(
    canvas: Canvas, ours: Axes, paper: Axes, arms: Arms, curves: Sequence[PublishedCurve], legend_columns: int
) -> None:
    norm_legend(canvas, arms, legend_columns)
    _draw_study(ours, arms)
    _draw_paper(paper, curves)


def _draw_study(axes: Axes, arms: Arms) -> None:
    if not any(arm.errors for arm in arms.all):
        strip_axes(axes, "No run has finished yet")
        return
    columns: list[int | None] = [*arms.norm_batches]
    if any(arm.norm_batch is None for arm in arms.all):
        columns.append(None)
        if arms.norm_batches:
            axes.axvspan(len(columns) - 1.5, len(columns) - 0.5, color="#f4f4f4", linewidth=0)
    for arm in arms.all:
        _draw_seeds(axes, arm, columns.index(arm.norm_batch) + _shift(arm, arms))
    for norm in arms.norms:
        _draw_means(axes, norm, arms, columns)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_xticks(range(len(columns)), ["any" if column is None else str(column) for column in columns])
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))
    axes.set_xlabel("norm batch: images that share Batch Norm's statistics")
    axes.set_ylabel("validation error (%)")
    axes.set_title("This study", loc="left", color="#222222")
    _mark_lost_runs(axes, arms, columns)
    _label_lines(axes, [arm for arm in arms.all if arm.norm_batch is None])


def _draw_seeds(axes: Axes, arm: Arm, position: float) -> None:
    errors = list(arm.errors.values())
    look = LOOKS[arm.norm]
    axes.plot(
        [position] * len(errors),
        errors,
        linestyle="none",
        marker=look.marker,
        color=look.colour,
        markeredgecolor="white",
        markersize=6,
        alpha=0.75,
        zorder=3,
    )


def _draw_means(axes: Axes, norm: Norm, arms: Arms, columns: Sequence[int | None]) -> None:
    positions, means = [], []
    for arm in arms.of(norm):
        mean = math.nan if arm.mean_error is None else arm.mean_error  # NaN leaves a gap in the line
        if arm.norm_batch is None:
            axes.plot([-0.5, len(columns) - 0.5], [mean, mean], color=LOOKS[norm].colour, linewidth=1.4, zorder=2)
        else:
            positions.append(columns.index(arm.norm_batch) + _shift(arm, arms))
            means.append(mean)
    axes.plot(positions, means, color=LOOKS[norm].colour, linewidth=1.8, zorder=2)


def _label_lines(axes: Axes, arms: Sequence[Arm]) -> None:
    """The name and mean of each horizontal line at its right end; labels of near lines move apart."""
    low, high = axes.get_ylim()
    labelled = sorted((arm.mean_error, arm.norm) for arm in arms if arm.mean_error is not None)
    heights = _spread([mean for mean, _ in labelled], LABEL_GAP * (high - low))
    for (mean, norm), height in zip(labelled, heights, strict=True):
        axes.annotate(
            f"{SHORT_NAMES[norm]} {magnitude(mean)}",
            (1.0, height),
            xycoords=axes.get_yaxis_transform(),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=LOOKS[norm].colour,
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


def _shift(arm: Arm, arms: Arms) -> float:
    """Norms that share a column stand side by side in it."""
    sharing = [norm for norm in arms.norms if any(a.norm_batch == arm.norm_batch for a in arms.of(norm))]
    return (sharing.index(arm.norm) - (len(sharing) - 1) / 2) * STEP


def _mark_lost_runs(axes: Axes, arms: Arms, columns: Sequence[int | None]) -> None:
    """Runs that diverged or failed have no point; the column says so instead of looking complete."""
    notes: dict[int, list[str]] = {}
    for arm in arms.all:
        lost = len(arm.seeds(*LOST))
        if lost:
            note = f"{SHORT_NAMES[arm.norm]}: {lost} of {len(arm.cells)}\nwithout result"
            notes.setdefault(columns.index(arm.norm_batch), []).append(note)
    if not notes:
        return
    low, high = axes.get_ylim()
    lines = 2 * max(map(len, notes.values()))
    axes.set_ylim(low, high + (high - low) * 0.06 * lines)
    for column, texts in notes.items():
        transform = axes.get_xaxis_transform()
        axes.text(column, 0.99, "\n".join(texts), transform=transform, ha="center", va="top", fontsize=7, color=GREY)


def _draw_paper(axes: Axes, curves: Sequence[PublishedCurve]) -> None:
    sizes = sorted({size for curve in curves for size in curve.norm_batch}, reverse=True)
    for curve in curves:
        positions = [sizes.index(size) for size in curve.norm_batch]
        marker = LOOKS[curve.norm].marker
        axes.plot(positions, curve.error_percent, color=GREY, marker=marker, markersize=5, linewidth=1.4)
        axes.annotate(
            SHORT_NAMES[curve.norm],
            (positions[-1], curve.error_percent[-1]),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=GREY,
        )
    axes.set_xlim(-0.4, len(sizes) - 0.4)
    axes.set_xticks(range(len(sizes)), map(str, sizes))
    axes.set_facecolor("#f7f7f7")
    axes.set_xlabel("norm batch: images per GPU", color=GREY)
    axes.set_ylabel("ImageNet top-1 error (%)", color=GREY)
    axes.tick_params(colors=GREY)
    axes.set_title("Different data: ResNet-50, ImageNet\nWu & He 2018, Table 2", loc="left", color=GREY)


def _alt(arms: Arms, curves: Sequence[PublishedCurve]) -> str:
    parts = []
    for norm in arms.norms:
        means = [
            f"{percent(arm.mean_error)} at {'any norm batch' if arm.norm_batch is None else arm.norm_batch}"
            for arm in arms.of(norm)
            if arm.mean_error is not None
        ]
        parts.append(f"{SHORT_NAMES[norm]} {', '.join(means) or 'has no finished run'}")
    paper = "; ".join(
        f"{SHORT_NAMES[curve.norm]} {curve.error_percent[0]} % at {curve.norm_batch[0]}"
        f" and {curve.error_percent[-1]} % at {curve.norm_batch[-1]}"
        for curve in curves
    )
    return (
        f"Mean validation error against norm batch. {'; '.join(parts)}. "
        f"In grey, on different data, {curves[0].source}: {paper}."
    )
