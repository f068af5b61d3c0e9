"""Figure "validation curves": validation error by epoch, one panel per norm batch, one scale for all."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from batchfree.records import CellRecord
from batchfree.report._arms import Arm, Arms, usable_error
from batchfree.report._figure import LOOKS, Figure, draw_figure, norm_legend, strip_axes
from batchfree.report._wording import SHORT_NAMES, percent

__all__ = ["curve_figure"]


def curve_figure(arms: Arms) -> Figure:
    """Thin lines are seeds, unfinished ones included; the thick line is the mean of the finished ones.

    A norm that cannot see the norm batch is drawn in every panel, so that each can be read alone.
    """
    panels: list[int | None] = [*arms.norm_batches] or [None]

    def layout(columns: int) -> tuple[int, int]:
        columns = min(columns, len(panels))
        return math.ceil(len(panels) / columns), columns

    def draw(canvas: Canvas, columns: int, legend_columns: int) -> None:
        rows, columns = layout(columns)
        grid = canvas.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        norm_legend(canvas, arms, legend_columns)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, arms, panel)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid.flat[max(len(panels) - columns, 0) : len(panels)]:
            axes.set_xlabel("epoch")
            axes.tick_params(labelbottom=True)  # the panel below it may be an empty one
        for axes in grid[:, 0]:
            axes.set_ylabel("validation error (%)")

    across = 5 if len(panels) <= 5 else 4
    wide = draw_figure(9.6, 0.5 + 2.6 * layout(across)[0], lambda canvas: draw(canvas, across, 5))
    narrow = draw_figure(4.4, 0.7 + 1.9 * layout(2)[0], lambda canvas: draw(canvas, 2, 3))
    return Figure(wide, narrow, _alt(arms, panels))


def _shown(arms: Arms, panel: int | None) -> list[Arm]:
    if panel is None:
        return list(arms.all)
    return [arm for norm in arms.norms if (arm := arms.at(norm, panel)) is not None]


def _draw_panel(axes: Axes, arms: Arms, panel: int | None) -> None:
    axes.set_title("any norm batch" if panel is None else f"norm batch {panel}", loc="left", color="#222222")
    shown = _shown(arms, panel)
    if not any(cell.metrics for arm in shown for cell in arm.cells):
        strip_axes(axes, "no epoch finished yet")
        return
    for arm in shown:
        look = LOOKS[arm.norm]
        for cell in arm.cells:
            axes.plot(_epochs(cell), _errors(cell), color=look.colour, linewidth=0.7, alpha=0.45)
        epochs, means = _mean_curve(arm)
        # The marker at the end tells the norms apart without colour, and shows a study of one epoch at all.
        axes.plot(epochs, means, color=look.colour, linewidth=1.8)
        axes.plot(
            epochs[-1:],
            means[-1:],
            color=look.colour,
            linestyle="none",
            marker=look.marker,
            markersize=5,
            markeredgecolor="white",
        )
    axes.set_ylim(_limits(arms))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))


def _epochs(cell: CellRecord) -> list[int]:
    return [metrics.epoch for metrics in cell.metrics]


def _errors(cell: CellRecord) -> list[float]:
    """NaN, where a number is no percentage, leaves a gap in the line."""
    return [m.error_percent if 0 <= m.error_percent <= 100 else math.nan for m in cell.metrics]


def _mean_curve(arm: Arm) -> tuple[list[int], list[float]]:
    """Mean over the cells that are done, which all have the same epochs; a diverged cell's early epochs stay out."""
    done = [cell for cell in arm.cells if usable_error(cell) is not None and cell.metrics]
    if not done:
        return [], []
    length = min(len(cell.metrics) for cell in done)
    columns = zip(*(_errors(cell)[:length] for cell in done), strict=True)
    return _epochs(done[0])[:length], [sum(column) / len(column) for column in columns]


def _limits(arms: Arms) -> tuple[float, float]:
    """The errors of the second half of the epochs fill the panels: what the first epochs do hides what is compared."""
    cells = [cell for arm in arms.all for cell in arm.cells]
    last = max((cell.config.epochs for cell in cells), default=0)
    every = [(metrics.epoch, metrics.error_percent) for cell in cells for metrics in cell.metrics]
    finite = [(epoch, error) for epoch, error in every if 0 <= error <= 100]
    errors = [error for epoch, error in finite if epoch > last / 2] or [error for _, error in finite] or [0.0, 100.0]
    margin = 0.1 * (max(errors) - min(errors)) or 0.5
    return max(min(errors) - margin, 0.0), max(errors) + 2 * margin


def _alt(arms: Arms, panels: Sequence[int | None]) -> str:
    parts = []
    for panel in panels:
        ends = [
            f"{SHORT_NAMES[arm.norm]} {percent(means[-1])}"
            for arm in _shown(arms, panel)
            if (means := _mean_curve(arm)[1])
        ]
        where = "any norm batch" if panel is None else f"norm batch {panel}"
        parts.append(f"{where}: {', '.join(ends) or 'no finished run'}")
    return (
        f"Validation error by epoch, one panel per norm batch. Mean error of the last epoch at {'; at '.join(parts)}."
    )
