"""Figure "error along fine-tuning": from right after the conversion on, a line per arm and a panel per norm batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from batchfree.records import Start
from batchfree.report._arms import Arm, Arms
from batchfree.report._curve_figure import ERROR, LINES, epochs_of, mean_curve, values_of
from batchfree.report._figure import DASHES, LOOKS, Figure, Look, draw_figure, strip_axes
from batchfree.report._panels import PanelArms, split_into_panels
from batchfree.report._wording import percent

__all__ = ["fine_tuning_figure"]

#: Of Group Norm, whose starts are many; the other norms look as everywhere.
GROUP_NORM_LOOKS: dict[Start, Look] = {
    "fresh": LOOKS["ln"],
    "copied": LOOKS["in"],
    "calibrated": LOOKS["gn"],
    "recovered": LOOKS["gn+ws"],
}
#: What makes no panels.
LINE_AXES = ("norm", "start")
TICKS_PERCENT = (0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 40, 60, 90)


def fine_tuning_figure(arms: Arms) -> Figure:
    """Lines begin at epoch 0 where a run started from a trained network; dashed ones had no pre-training."""
    panels = split_into_panels(arms.trained, [axis for axis in arms.axes if axis not in LINE_AXES])
    panels = panels or [PanelArms("", {}, ())]
    caption = (
        f"Validation error by epoch on a logarithmic scale; epoch 0 is before the first step, right after the "
        f"conversion. Dashed: without the pre-training. {LINES}"
    )
    if arms.has_any_norm_batch and len(arms.norm_batches) > 1:
        caption += " Norms that do not see the norm batch are the same runs in every panel."
    return Figure(
        name="fine-tuning",
        heading="Error along fine-tuning",
        caption=caption,
        alt=f"Mean validation error before the first step and after the last epoch. {_words(panels)}.",
        wide=draw_figure(9.6, 4.6, _drawing(panels, 1, legend_columns=4)),
        narrow=draw_figure(4.4, 1.3 + 2.7 * len(panels), _drawing(panels, len(panels), legend_columns=2)),
    )


def _drawing(panels: Sequence[PanelArms], rows: int, legend_columns: int) -> Callable[[Canvas], None]:
    def draw(canvas: Canvas) -> None:
        grid = canvas.subplots(rows, len(panels) // rows, sharex=True, sharey=True, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=True):
            _draw_panel(axes, panel)
        for axes in grid[-1]:
            axes.set_xlabel("epoch")
        for axes in grid[:, 0]:
            axes.set_ylabel(ERROR.label)
        handles = [_handle(arm) for arm in {_line_label(arm): arm for panel in panels for arm in panel.arms}.values()]
        if handles:
            canvas.legend(
                handles=handles, loc="outside upper left", ncols=legend_columns, columnspacing=1.5, handlelength=3.2
            )

    return draw


def _draw_panel(axes: Axes, panel: PanelArms) -> None:
    axes.set_title(panel.title, loc="left", color="#222222")
    if not any(cell.metrics for arm in panel.arms for cell in arm.cells):
        strip_axes(axes, "no epoch finished yet")
        return
    for arm in panel.arms:
        look, dashes = _look(arm), _dashes(arm)
        for cell in arm.cells:
            values = values_of(cell, ERROR)
            axes.plot(epochs_of(cell), values, color=look.colour, linestyle=dashes, linewidth=0.6, alpha=0.4)
        axes.plot(
            *mean_curve(arm, ERROR),
            color=look.colour,
            linestyle=dashes,
            linewidth=1.6,
            marker=look.marker,
            markersize=4,
            markeredgecolor="white",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator(TICKS_PERCENT))  # which leaves the limits to the lines
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _look(arm: Arm) -> Look:
    return GROUP_NORM_LOOKS.get(arm.config.start, LOOKS[arm.norm])


def _dashes(arm: Arm) -> Literal["solid"] | tuple[int, tuple[int, int]]:
    return DASHES if arm.config.start == "scratch" else "solid"


def _handle(arm: Arm) -> Line2D:
    look = _look(arm)
    label, dashes = _line_label(arm), _dashes(arm)
    return Line2D([], [], color=look.colour, marker=look.marker, linestyle=dashes, markersize=5, label=label)


def _line_label(arm: Arm) -> str:
    return arm.label_without(*(axis for axis in arm.axes if axis not in LINE_AXES))


def _words(panels: Sequence[PanelArms]) -> str:
    parts = []
    for panel in panels:
        told = [
            f"{_line_label(arm)} {before}{percent(means[-1])}"
            for arm in panel.arms
            if (means := mean_curve(arm, ERROR)[1])
            for before in [f"{percent(arm.mean_initial_error)} to " if arm.mean_initial_error is not None else ""]
        ]
        parts.append(f"{f'{panel.title}: ' if panel.title else ''}{', '.join(told) or 'no finished run'}")
    return "; ".join(parts)
