"""A panel of published numbers: grey, with its source and the words "different data"."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from batchfree.report._figure import GREY, LOOKS
from batchfree.report._panels import Panel
from batchfree.report._published import Exhibit
from batchfree.report._wording import percent

__all__ = ["ROW_HEIGHT", "published_panel", "published_words", "wrapped"]

#: Inches of a row with its label.
ROW_HEIGHT = 0.3
#: Characters from which a row's label takes two lines.
WRAP = 22


def published_panel(exhibit: Exhibit) -> Panel:
    """The exhibit as lines against its axis, or, where it has none, as a row per number."""
    if exhibit.axis is not None:
        return Panel(lambda axes: _draw_lines(axes, exhibit), 4.1, 2.8)
    return Panel(lambda axes: _draw_rows(axes, exhibit), 1.6 + ROW_HEIGHT * len(exhibit.series))


def published_words(exhibits: Sequence[Exhibit]) -> str:
    """The numbers as drawn, for a figure's alternative text; empty where there are none."""
    parts = []
    for exhibit in exhibits:
        lines = []
        for series in exhibit.series:
            errors = [percent(error) for error in exhibit.errors(series)]
            where = [f"{error} at {x}" for error, x in zip(errors, exhibit.x, strict=False)]
            lines.append(f"{series.label} {', '.join(where or errors)}")
        parts.append(f" In grey, on different data, {exhibit.source}: {'; '.join(lines)}.")
    return "".join(parts)


def wrapped(label: str) -> str:
    """A row's label on two lines where it is long, broken at the comma nearest to its middle.

    >>> wrapped("ResNet-101, BN, norm batch 32").split("\\n")
    ['ResNet-101, BN,', 'norm batch 32']
    """
    commas = [index for index in range(len(label)) if label.startswith(", ", index)]
    if len(label) <= WRAP or not commas:
        return label
    at = min(commas, key=lambda index: abs(index - len(label) / 2))
    return f"{label[: at + 1]}\n{label[at + 2 :]}"


def _draw_lines(axes: Axes, exhibit: Exhibit) -> None:
    for series in exhibit.series:
        errors = exhibit.errors(series)
        marker = LOOKS[series.norm].marker
        axes.plot(range(len(exhibit.x)), errors, color=GREY, marker=marker, markersize=5, linewidth=1.4)
        axes.annotate(
            series.label,
            (len(exhibit.x) - 1, errors[-1]),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=GREY,
        )
    axes.set_xlim(-0.4, len(exhibit.x) - 0.4)
    axes.set_xticks(range(len(exhibit.x)), map(str, exhibit.x))
    axes.set_xlabel(exhibit.axis_label, color=GREY)
    axes.set_ylabel("top-1 error (%)", color=GREY)
    _grey(axes, exhibit)


def _draw_rows(axes: Axes, exhibit: Exhibit) -> None:
    rows = range(len(exhibit.series))
    for row, series in zip(rows, exhibit.series, strict=True):
        (error,) = exhibit.errors(series)
        axes.plot([error], [row], color=GREY, marker=LOOKS[series.norm].marker, markersize=6, linestyle="none")
    axes.set_yticks(rows, [wrapped(series.label) for series in exhibit.series], fontsize=8)
    axes.set_ylim(len(exhibit.series) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_xlabel("error (%)", color=GREY)
    _grey(axes, exhibit)
    axes.grid(visible=True, axis="x")


def _grey(axes: Axes, exhibit: Exhibit) -> None:
    axes.set_facecolor("#f7f7f7")
    axes.tick_params(colors=GREY)
    axes.set_title(f"Different data:\n{exhibit.title}", loc="left", color=GREY)
