"""Figures by epoch: validation curves of every study, and training loss beside them where a study is about curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from batchfree.records import CellRecord, EpochMetrics
from batchfree.report._arms import Arm, Arms, usable_error
from batchfree.report._figure import LOOKS, Figure, draw_figure, norm_legend, strip_axes
from batchfree.report._panels import Panel, PanelArms, arrange, split_into_panels
from batchfree.report._published import Exhibit
from batchfree.report._published_panel import published_panel, published_words
from batchfree.report._wording import percent

__all__ = ["ERROR", "LINES", "epochs_of", "mean_curve", "training_figure", "validation_figure", "values_of"]


LINES = "Thin lines are seeds, with those that did not finish; thick lines are means of the finished ones."


@dataclass(frozen=True)
class Quantity:
    """What is drawn by epoch."""

    label: str
    read: Callable[[EpochMetrics], float]  # NaN where there is nothing to draw


def _error_or_gap(metrics: EpochMetrics) -> float:
    """A number that is no percentage comes from a damaged file; it is a gap in its line."""
    return metrics.error_percent if 0 <= metrics.error_percent <= 100 else math.nan


ERROR = Quantity("validation error (%)", _error_or_gap)


def _loss_or_gap(metrics: EpochMetrics) -> float:
    """None before the first step."""
    return metrics.train_loss if metrics.train_loss is not None and metrics.train_loss < 1e6 else math.nan


LOSS = Quantity("training loss (nats)", _loss_or_gap)


def validation_figure(arms: Arms) -> Figure:
    """Thin lines are seeds, unfinished ones included; the thick line is the mean of the finished ones.

    One panel per combination of what the arms differ in besides the norm. A norm that cannot see the norm batch is
    drawn in every panel, so that each can be read alone.
    """
    panels = split_into_panels(arms.trained, arms.axes) or [PanelArms("", {}, ())]
    across = 5 if len(panels) <= 5 else 4

    def rows(columns: int) -> int:
        return math.ceil(len(panels) / min(columns, len(panels)))

    caption = f"Validation error by epoch, one scale for all panels. {LINES}{_cut(arms.trained, ERROR)}"
    if arms.has_any_norm_batch and len(arms.norm_batches) > 1:
        caption += " Norms that do not see the norm batch are the same runs in every panel."
    return Figure(
        name="validation-curves",
        heading="Validation curves",
        caption=caption,
        alt=_alt(panels),
        wide=draw_figure(
            9.6, 0.5 + 2.6 * rows(across), lambda canvas: _draw_grid(canvas, arms, panels, across, legend_columns=5)
        ),
        narrow=draw_figure(
            4.4, 0.7 + 1.9 * rows(2), lambda canvas: _draw_grid(canvas, arms, panels, 2, legend_columns=3)
        ),
    )


def training_figure(arms: Arms, exhibits: Sequence[Exhibit]) -> Figure:
    """Training loss and validation error by epoch, side by side for each setting, and the published errors."""
    parts = split_into_panels(arms.trained, arms.axes) or [PanelArms("", {}, ())]
    panels = [
        Panel(_drawing(part, quantity, _limits(arms.trained, quantity), f"{part.title or 'This study'}: {name}"), 3.3)
        for part in parts
        for quantity, name in ((LOSS, "training"), (ERROR, "validation"))
    ]
    return arrange(
        arms.trained,
        [*panels, *map(published_panel, exhibits)],
        name="training-and-validation-curves",
        heading="Training and validation curves",
        caption="Loss on the training images and error on the validation images, by epoch. "
        f"{LINES}{_cut(arms.trained, LOSS, ERROR)}",
        alt=_alt(parts) + published_words(exhibits),
        ratios=(1.0, 1.0, 0.7) if len(parts) == 1 and exhibits else (1.0, 1.0),
    )


def _drawing(part: PanelArms, quantity: Quantity, limits: tuple[float, float], title: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        _draw_panel(axes, part, quantity, limits, title)
        if axes.axison:
            axes.set_xlabel("epoch")
            axes.set_ylabel(quantity.label)

    return draw


def _draw_grid(canvas: Canvas, arms: Arms, panels: Sequence[PanelArms], columns: int, legend_columns: int) -> None:
    columns = min(columns, len(panels))
    grid = canvas.subplots(math.ceil(len(panels) / columns), columns, sharex=True, sharey=True, squeeze=False)
    norm_legend(canvas, arms.trained, legend_columns)
    limits = _limits(arms.trained, ERROR)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel, ERROR, limits, _wrapped(panel.title))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid.flat[max(len(panels) - columns, 0) : len(panels)]:
        axes.set_xlabel("epoch")
        axes.tick_params(labelbottom=True)  # the panel below it may be an empty one
    for axes in grid[:, 0]:
        axes.set_ylabel(ERROR.label)


def _wrapped(title: str) -> str:
    """A title of several parts on lines of their own: panels are narrow."""
    return title.replace(", ", "\n")


def _draw_panel(axes: Axes, panel: PanelArms, quantity: Quantity, limits: tuple[float, float], title: str) -> None:
    axes.set_title(title, loc="left", color="#222222")
    if not any(cell.metrics for arm in panel.arms for cell in arm.cells):
        strip_axes(axes, "no epoch finished yet")
        return
    for arm in panel.arms:
        look = LOOKS[arm.norm]
        for cell in arm.cells:
            axes.plot(epochs_of(cell), values_of(cell, quantity), color=look.colour, linewidth=0.7, alpha=0.45)
        epochs, means = mean_curve(arm, quantity)
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
    axes.set_ylim(limits)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))


def epochs_of(cell: CellRecord) -> list[int]:
    return [metrics.epoch for metrics in cell.metrics]


def values_of(cell: CellRecord, quantity: Quantity) -> list[float]:
    return [quantity.read(metrics) for metrics in cell.metrics]


def mean_curve(arm: Arm, quantity: Quantity) -> tuple[list[int], list[float]]:
    """Mean over the cells that are done, which all have the same epochs; a diverged cell's early epochs stay out."""
    done = [cell for cell in arm.cells if usable_error(cell) is not None and cell.metrics]
    if not done:
        return [], []
    length = min(len(cell.metrics) for cell in done)
    columns = zip(*(values_of(cell, quantity)[:length] for cell in done), strict=True)
    return epochs_of(done[0])[:length], [sum(column) / len(column) for column in columns]


def _finite(arms: Sequence[Arm], quantity: Quantity) -> list[tuple[int, float]]:
    every = [(metrics.epoch, quantity.read(metrics)) for arm in arms for cell in arm.cells for metrics in cell.metrics]
    return [(epoch, value) for epoch, value in every if math.isfinite(value)]


def _limits(arms: Sequence[Arm], quantity: Quantity) -> tuple[float, float]:
    """The second half of the epochs fills the panels: what the first epochs do hides what is compared."""
    last = max((arm.config.epochs for arm in arms), default=0)
    finite = _finite(arms, quantity)
    shown = [value for epoch, value in finite if epoch > last / 2] or [value for _, value in finite] or [0.0, 100.0]
    margin = 0.1 * (max(shown) - min(shown)) or 0.5
    return max(min(shown) - margin, 0.0), max(shown) + 2 * margin


def _cut(arms: Sequence[Arm], *quantities: Quantity) -> str:
    """What of the lines is outside the panels, as a sentence; empty where nothing is."""
    sides = set()
    for quantity in quantities:
        low, high = _limits(arms, quantity)
        for _, value in _finite(arms, quantity):
            sides |= {"above"} if value > high else {"below"} if value < low else set()
    if not sides:
        return ""
    where = " or ".join(sorted(sides))
    return f" The scale fits the second half of the epochs; what is {where} it in the first is cut."


def _alt(panels: Sequence[PanelArms]) -> str:
    parts = []
    for panel in panels:
        ends = [
            f"{arm.label_without(*panel.shared)} {percent(means[-1])}"
            for arm in panel.arms
            if (means := mean_curve(arm, ERROR)[1])
        ]
        where = f"{panel.title}: " if panel.title else ""
        parts.append(f"{where}{', '.join(ends) or 'no finished run'}")
    return f"Validation error by epoch. Mean error of the last epoch: {'; '.join(parts)}."
