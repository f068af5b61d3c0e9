"""Figure "percentiles of features": how the last convolution's output spreads over training, a panel per arm."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from batchfree.report._arms import Arm, Arms, usable_error
from batchfree.report._figure import LOOKS, Figure, draw_figure, strip_axes
from batchfree.report._wording import percent

__all__ = ["percentile_figure"]

PERCENTILES = (1, 20, 80, 99)
#: Widest spread over narrowest up to which the panels share a scale.
COMPARABLE = 4.0


def percentile_figure(arms: Arms) -> Figure:
    """The 1st, 20th, 80th and 99th percentile by epoch, as in Figure 6 of the paper: thin by seed, thick the mean."""
    panels = arms.trained
    spreads = [max(values) - min(values) for arm in panels if (values := _every_value(arm))]
    is_shared = not spreads or max(spreads) <= COMPARABLE * max(min(spreads), 1e-12)
    across = min(max(len(panels), 1), 4)

    def draw(canvas: Canvas, columns: int) -> None:
        rows = math.ceil(max(len(panels), 1) / columns)
        grid = canvas.subplots(rows, columns, sharey=is_shared, squeeze=False)
        for axes, arm in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, arm)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("last convolution's output")

    scale = "One scale for all panels." if is_shared else "Each panel has its own scale."
    return Figure(
        name="feature-percentiles",
        heading="Percentiles of the last features",
        caption="1st, 20th, 80th and 99th percentile of the last convolution's output on validation images, by epoch. "
        f"{scale} Thin lines are seeds, with those that did not finish; thick lines are means of the finished ones.",
        alt=f"Percentiles of the last convolution's output. After the last epoch: {_words(panels)}.",
        wide=draw_figure(9.6, 0.4 + 3.0 * math.ceil(max(len(panels), 1) / across), lambda canvas: draw(canvas, across)),
        narrow=draw_figure(4.4, 0.4 + 2.6 * max(len(panels), 1), lambda canvas: draw(canvas, 1)),
    )


def _draw_panel(axes: Axes, arm: Arm) -> None:
    mean = percent(arm.mean_error)
    axes.set_title(f"{arm.label}{f': {mean} error' if mean else ''}", loc="left", color="#222222")
    if not _every_value(arm):
        strip_axes(axes, "no percentiles recorded yet")
        return
    look = LOOKS[arm.norm]
    for index, percentile in enumerate(PERCENTILES):
        for _, epochs, values in _lines(arm, index):
            axes.plot(epochs, values, color=look.colour, linewidth=0.7, alpha=0.45)
        epochs, means = _mean_line(arm, index)
        is_outer = percentile in (1, 99)
        axes.plot(epochs, means, color=look.colour, linewidth=1.2 if is_outer else 2.0)
        if means and math.isfinite(means[-1]):
            axes.annotate(
                f"{percentile} %",
                (epochs[-1], means[-1]),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=look.colour,
                annotation_clip=False,
            )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))


def _lines(arm: Arm, index: int) -> list[tuple[bool, list[int], list[float]]]:
    """Per cell: whether it is done, its epochs, and one percentile in each; what is not a number is a gap."""
    return [
        (
            usable_error(cell) is not None,
            [m.epoch for m in cell.metrics if m.feature_percentiles is not None],
            [_or_gap(m.feature_percentiles[index]) for m in cell.metrics if m.feature_percentiles is not None],
        )
        for cell in arm.cells
    ]


def _mean_line(arm: Arm, index: int) -> tuple[list[int], list[float]]:
    done = [(epochs, values) for is_done, epochs, values in _lines(arm, index) if is_done and values]
    if not done:
        return [], []
    length = min(len(values) for _, values in done)
    columns = zip(*(values[:length] for _, values in done), strict=True)
    return done[0][0][:length], [math.fsum(column) / len(column) for column in columns]


def _every_value(arm: Arm) -> list[float]:
    return [
        value
        for index in range(len(PERCENTILES))
        for _, _, values in _lines(arm, index)
        for value in values
        if math.isfinite(value)
    ]


def _or_gap(value: float) -> float:
    return value if abs(value) < 1e30 else math.nan


def _words(arms: Sequence[Arm]) -> str:
    parts = []
    for arm in arms:
        ends = [means[-1] for index in range(len(PERCENTILES)) if (means := _mean_line(arm, index)[1])]
        values = ", ".join(f"{value:.3g}" for value in ends) or "none recorded"
        parts.append(f"{arm.label} {values}")
    return "; ".join(parts)
