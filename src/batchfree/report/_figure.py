"""What the figures share: one look per norm, a fixed style, and SVG bytes that depend on the numbers alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from batchfree.records import NORMS, Norm
from batchfree.report._arms import Arm
from batchfree.report._wording import SHORT_NAMES

__all__ = ["DASHES", "GREY", "LOOKS", "Figure", "Look", "draw_figure", "norm_legend", "strip_axes"]

GREY = "#767676"
#: Lines of arms that are not training runs of their own: Batch Norm with statistics recomputed.
DASHES = (0, (4, 2))


@dataclass(frozen=True)
class Look:
    """Colour and marker of a norm: either alone tells them apart."""

    colour: str
    marker: str


#: Okabe & Ito's palette, which stays apart under the common kinds of colour blindness; its light colours darkened so
#: that text in them can be read on white.
LOOKS: dict[Norm, Look] = {
    "none": Look("#1a1a1a", "X"),
    "bn": Look("#D55E00", "o"),
    "bn-frozen": Look("#7A4B2A", "p"),
    "bn+ws": Look("#2B8CC4", "P"),
    "gn": Look("#0072B2", "s"),
    "gn+ws": Look("#009E73", "D"),
    "ln": Look("#AA4499", "^"),
    "in": Look("#C79100", "v"),
}

_STYLE = {
    "svg.hashsalt": "batchfree",  # the ids inside the file would be random without it
    "svg.fonttype": "path",  # the same letters on every machine
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "text.parse_math": False,  # a dollar sign in a name from outside is a dollar sign
    "axes.titlesize": 9.5,
    "axes.edgecolor": "#8a8a8a",
    "axes.labelcolor": "#333333",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "lines.markeredgewidth": 0.8,
}


@dataclass(frozen=True)
class Figure:
    """A drawing in two layouts, and what it shows in words."""

    name: str  # of its file, without the ending
    heading: str
    caption: str
    alt: str  # its numbers, for those who do not see it
    wide: bytes  # SVG, panels side by side
    narrow: bytes  # SVG for a phone, panels stacked


def draw_figure(width: float, height: float, draw: Callable[[Canvas], None]) -> bytes:
    """The SVG of what `draw` puts on an empty figure of `width` x `height` inches."""
    # "default" first: a matplotlibrc of the user's would otherwise change the drawing.
    with style.context(["default", _STYLE]):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        draw(canvas)
        content = io.BytesIO()
        canvas.savefig(
            content, format="svg", metadata={"Date": None, "Creator": f"matplotlib {matplotlib.__version__}"}
        )
    return content.getvalue()


def norm_legend(canvas: Canvas, arms: Sequence[Arm], columns: int) -> None:
    """One legend above all panels, with the norms of `arms`."""
    kinds = sorted({(NORMS.index(arm.norm), arm.is_recomputed) for arm in arms})
    handles = [_handle(NORMS[index], is_recomputed) for index, is_recomputed in kinds]
    if handles:
        canvas.legend(handles=handles, loc="outside upper left", ncols=columns, columnspacing=1.5)


def _handle(norm: Norm, is_recomputed: bool) -> Line2D:
    look = LOOKS[norm]
    label = SHORT_NAMES[norm] + (", statistics recomputed" if is_recomputed else "")
    handle = Line2D([], [], color=look.colour, marker=look.marker, label=label, markersize=5)
    if is_recomputed:
        handle.set(linestyle=DASHES, markerfacecolor="white")
    return handle


def strip_axes(axes: Axes, text: str) -> None:
    """An empty panel that says why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
