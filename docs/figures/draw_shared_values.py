"""Draws shared-values.svg: which values of an (N, C, H*W) block share one mean and variance in BN, LN, IN and GN.

    python docs/figures/draw_shared_values.py [FILE]

The idea is Figure 2 of Wu & He 2018 (arXiv 1803.08494). Here each block is cut where one norm stops sharing, and the
coloured piece is what the dotted value, the same one in all four, is normalised with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Polygon
from matplotlib.path import Path as Outline

HERE = Path(__file__).parent

#: Samples, channels and positions (H * W, as one axis) of the block, and the groups of its GN panel.
N, C, POSITIONS, GROUPS = 3, 6, 4, 2
#: The value with the dot: sample, channel, position.
DOTTED = (0, C - 1, POSITIONS - 1)

#: Of a cell, to the right and up, for one step to the next sample.
DEPTH = (0.62, 0.46)
#: What a cut takes from either side of it, in cells.
HALF_CUT = 0.13

GREY = "#666666"
INK = "#222222"

_STYLE = {
    "svg.hashsalt": "batchfree",  # the ids inside the file would be random without it
    "svg.fonttype": "path",  # the same letters on every machine
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 11.5,
    "lines.solid_capstyle": "round",
}


class Norm(NamedTuple):
    """How a norm cuts the block: between every two samples or not, and the channels into so many runs."""

    title: str
    share: tuple[str, str]  # who shares, in two lines
    colour: str  # Okabe & Ito, as in the study's figures
    cuts_samples: bool
    channel_runs: int


NORMS = {
    "bn": Norm("BN  Batch Norm", ("one channel of", "the whole batch"), "#D55E00", False, C),
    "ln": Norm("LN  Layer Norm", ("one sample,", "all channels"), "#AA4499", True, 1),
    "in": Norm("IN  Instance Norm", ("one sample,", "one channel"), "#C79100", True, C),
    "gn": Norm("GN  Group Norm", ("one sample,", "one group of channels"), "#0072B2", True, GROUPS),
}


class Piece(NamedTuple):
    """Samples and channels, first and one past the last, that share one mean and variance at all positions."""

    samples: tuple[int, int]
    channels: tuple[int, int]

    def holds(self, sample: int, channel: int) -> bool:
        """Whether this value of the block, at any position, is one of the piece's."""
        return self.samples[0] <= sample < self.samples[1] and self.channels[0] <= channel < self.channels[1]


def pieces(norm: Norm) -> list[Piece]:
    """The pieces into which `norm` cuts the block: farthest sample first, then from the left, as they are drawn."""
    samples = [(n, n + 1) for n in reversed(range(N))] if norm.cuts_samples else [(0, N)]
    ends = range(0, C + 1, C // norm.channel_runs)
    return [Piece(n, c) for n in samples for c in pairwise(ends)]


def is_coloured(piece: Piece) -> bool:
    """Whether it is the piece of the dotted value."""
    return piece.holds(*DOTTED[:2])


def coloured_values(norm: Norm) -> set[tuple[int, int, int]]:
    """(sample, channel, position) of every value in the coloured piece."""
    (piece,) = filter(is_coloured, pieces(norm))
    return {(n, c, s) for n, c, s in product(range(N), range(C), range(POSITIONS)) if piece.holds(n, c)}


def main(target: Path = HERE / "shared-values.svg") -> None:
    """Writes the figure; the same matplotlib gives the same bytes."""
    # "default" first: a matplotlibrc of the user's would otherwise change the drawing.
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(5.2, 5.4))
        for place, norm in enumerate(NORMS.values()):
            row, column = divmod(place, 2)
            axes = figure.add_axes((0.5 * column, 0.5 - 0.5 * row, 0.5, 0.5))
            _draw_panel(axes, norm)
        metadata = {"Date": None, "Creator": f"matplotlib {matplotlib.__version__}"}
        figure.savefig(target, format="svg", metadata=metadata)


def _draw_panel(axes: Axes, norm: Norm) -> None:
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-1.5, 9.0)
    axes.set_ylim(-3.7, 7.2)
    for piece in pieces(norm):
        _draw_piece(axes, norm, piece)
    _, channel, position = DOTTED
    axes.plot(*_project(channel + 0.5, position + 0.5, 0), "o", color="white", markersize=6.5, markeredgecolor=INK)
    middle = (C + DEPTH[0] * N) / 2
    axes.text(middle, 6.2, norm.title, ha="center", weight="bold", color=INK)
    for height, line in zip((-2.2, -2.98), norm.share, strict=True):
        axes.text(middle, height, line, ha="center", color=INK)
    _draw_axis_names(axes)


def _draw_axis_names(axes: Axes) -> None:
    arrow = {"arrowstyle": "->", "color": GREY, "shrinkA": 0, "shrinkB": 0}
    start, gap = (0.0, 0.0), 0.45
    depth_start = _project(C + gap, 0, 0)
    depth_end = _project(C + gap, 0, N)
    axes.annotate("", (C, -gap), (start[0], -gap), arrowprops=arrow)
    axes.annotate("", (-gap, POSITIONS), (-gap, start[1]), arrowprops=arrow)
    axes.annotate("", depth_end, depth_start, arrowprops=arrow)
    axes.text(C / 2, -gap - 0.2, "C", ha="center", va="top", color=GREY)
    axes.text(-gap - 0.2, POSITIONS / 2, "H·W", ha="right", va="center", rotation=90, color=GREY)
    axes.text((depth_start[0] + depth_end[0]) / 2 + 0.3, depth_end[1] / 2 - 0.15, "N", ha="left", va="top", color=GREY)


def _draw_piece(axes: Axes, norm: Norm, piece: Piece) -> None:
    (near, far), (left, right) = _inset(piece.samples, N), _inset(piece.channels, C)
    colour = norm.colour if is_coloured(piece) else "#d6d6d6"
    edge = _shade(norm.colour, 0.55) if is_coloured(piece) else "#8c8c8c"
    front = [(left, 0, near), (right, 0, near), (right, POSITIONS, near), (left, POSITIONS, near)]
    top = [(left, POSITIONS, near), (right, POSITIONS, near), (right, POSITIONS, far), (left, POSITIONS, far)]
    side = [(right, 0, near), (right, 0, far), (right, POSITIONS, far), (right, POSITIONS, near)]
    for face, shade in ((side, 0.8), (top, 1.25), (front, 1.0)):
        corners = [_project(*corner) for corner in face]
        axes.add_patch(Polygon(corners, facecolor=_shade(colour, shade), edgecolor=edge, linewidth=0.9))
    vertices = [_project(*end) for line in _cell_lines(piece, near, far, left, right) for end in line]
    codes = [Outline.MOVETO, Outline.LINETO] * (len(vertices) // 2)
    axes.add_patch(PathPatch(Outline(vertices, codes), facecolor="none", edgecolor="white", linewidth=0.9, alpha=0.75))


_Point = tuple[float, float, float]


def _cell_lines(piece: Piece, near: float, far: float, left: float, right: float) -> Iterator[tuple[_Point, _Point]]:
    """The borders between the values of one piece, on its three faces that are seen."""
    for c in range(piece.channels[0] + 1, piece.channels[1]):
        yield (c, 0, near), (c, POSITIONS, near)
        yield (c, POSITIONS, near), (c, POSITIONS, far)
    for n in range(piece.samples[0] + 1, piece.samples[1]):
        yield (left, POSITIONS, n), (right, POSITIONS, n)
        yield (right, 0, n), (right, POSITIONS, n)
    for s in range(1, POSITIONS):
        yield (left, s, near), (right, s, near)
        yield (right, s, near), (right, s, far)


def _inset(run: tuple[int, int], size: int) -> tuple[float, float]:
    """Where a run of cells is drawn: a cut takes its half, the outside of the block nothing."""
    return run[0] + HALF_CUT * (run[0] > 0), run[1] - HALF_CUT * (run[1] < size)


def _project(channel: float, position: float, sample: float) -> tuple[float, float]:
    return channel + DEPTH[0] * sample, position + DEPTH[1] * sample


def _shade(colour: str, factor: float) -> str:
    """Darker below 1; above 1 on the way to white."""
    parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    mixed = [part * factor if factor <= 1 else 255 - (255 - part) / factor**2 for part in parts]
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
