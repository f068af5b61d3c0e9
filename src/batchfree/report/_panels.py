"""Which arms stand together in a panel of a figure, and how panels are laid out wide and narrow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from batchfree.report._arms import Arm
from batchfree.report._figure import Figure, draw_figure, norm_legend
from batchfree.report._wording import AxisValue, setting_label

__all__ = ["Panel", "PanelArms", "arrange", "split_into_panels"]

#: A panel that needs less than this part of its row's height is not stretched over it.
STRETCH = 0.75


@dataclass(frozen=True)
class PanelArms:
    """Arms that agree in every axis that makes the panels, as far as they see it."""

    title: str  # what they share; empty where the study has nothing but norms
    shared: dict[str, AxisValue]
    arms: tuple[Arm, ...]


def split_into_panels(arms: Sequence[Arm], axes: Sequence[str]) -> list[PanelArms]:
    """One panel per combination of values of `axes`; an arm that does not see an axis is in each of its panels."""
    keys: list[tuple[dict[str, AxisValue], Arm]] = []
    for arm in arms:
        key = {axis: arm.value(axis) for axis in axes if axis != "norm" and arm.sees(axis)}
        if all(key != known for known, _ in keys):
            keys.append((key, arm))
    panels = []
    for key, first in keys:
        if any(key != other and key.items() <= other.items() for other, _ in keys):
            continue  # its arms are in the panels of `other`
        title = setting_label(first.config, tuple(key))
        if not title and "norm_batch" in axes:
            title = "any norm batch"
        panels.append(PanelArms(title, key, tuple(arm for arm in arms if _fits(arm, key))))
    return panels


def _fits(arm: Arm, key: dict[str, AxisValue]) -> bool:
    return all(arm.value(axis) == value for axis, value in key.items() if arm.sees(axis))


@dataclass(frozen=True)
class Panel:
    """One drawing in a figure of several."""

    draw: Callable[[Axes], None]
    height: float = 4.1  # inches that it needs
    narrow_height: float = field(default=0.0)  # on a phone; the same where 0


def arrange(
    arms: Sequence[Arm],
    panels: Sequence[Panel],
    *,
    name: str,
    heading: str,
    caption: str,
    alt: str,
    ratios: tuple[float, ...] = (2.1, 1.0),
) -> Figure:
    """The panels in columns, row by row, for wide pages, and one above the other for narrow ones.

    Args:
        arms: whose norms the legend explains.
        ratios: of the columns' widths.
    """
    columns = min(len(ratios), len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in row) for row in rows]
    narrow_heights = [panel.narrow_height or panel.height for panel in panels]

    def wide(canvas: Canvas) -> None:
        grid = canvas.add_gridspec(len(rows), columns, height_ratios=heights, width_ratios=ratios[:columns])
        for index, panel in enumerate(panels):
            row, column = divmod(index, columns)
            place = grid[row, column]
            if panel.height < STRETCH * heights[row]:
                place = place.subgridspec(2, 1, height_ratios=[panel.height, heights[row] - panel.height])[0]
            panel.draw(canvas.add_subplot(place))
        norm_legend(canvas, arms, 6)

    def narrow(canvas: Canvas) -> None:
        grid = canvas.subplots(len(panels), 1, squeeze=False, height_ratios=narrow_heights)
        for panel, axes in zip(panels, grid.flat, strict=True):
            panel.draw(axes)
        norm_legend(canvas, arms, 2 if any(arm.is_recomputed for arm in arms) else 3)

    return Figure(
        name=name,
        heading=heading,
        caption=caption,
        alt=alt,
        wide=draw_figure(9.6, math.fsum(heights) + 0.5, wide),
        narrow=draw_figure(4.4, math.fsum(narrow_heights) + 0.7, narrow),
    )
