"""Figure "error of each arm": a row per arm with a point per seed and its mean, and the published numbers."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from batchfree.report._arms import LOST, Arm, Arms
from batchfree.report._figure import GREY, LOOKS, Figure, strip_axes
from batchfree.report._panels import Panel, PanelArms, arrange, split_into_panels
from batchfree.report._published import Exhibit
from batchfree.report._published_panel import ROW_HEIGHT, published_panel, published_words, wrapped
from batchfree.report._wording import magnitude, percent

__all__ = ["bars_figure"]

#: Axes that tell the rows of one block apart; the others make the blocks.
ROW_AXES = ("norm", "start", "norm_batch", "groups", "channels_per_group")


def bars_figure(arms: Arms, exhibits: Sequence[Exhibit]) -> Figure:
    """The rows of arms that share everything but norm, groups and norm batch stand together under one title."""
    blocks = split_into_panels(arms.all, [axis for axis in arms.axes if axis not in ROW_AXES])
    titles = sum(bool(block.title) for block in blocks)
    rows = Panel(lambda axes: _draw(axes, blocks), 1.1 + ROW_HEIGHT * (len(arms.all) + titles))
    words = [f"{arm.label} {percent(arm.mean_error) or 'has no finished run'}" for arm in arms.all]
    recomputed = " Hollow: the same runs, evaluated with running statistics computed anew from training images."
    return arrange(
        arms.all,
        [rows, *map(published_panel, exhibits)],
        name="errors",
        heading="Error of each arm",
        caption="In colour: every point is one seed's validation error, the median of its last epochs; the stroke "
        "and the number are the mean." + (recomputed if any(arm.is_recomputed for arm in arms.all) else ""),
        alt=f"Mean validation error of each arm. {'; '.join(words)}.{published_words(exhibits)}",
        ratios=(1.5, 1.0),
    )


def _draw(axes: Axes, blocks: Sequence[PanelArms]) -> None:
    if not any(arm.errors for block in blocks for arm in block.arms):
        strip_axes(axes, "No run has finished yet")
        return
    row = 0
    ticks: list[tuple[int, str]] = []
    for block in blocks:
        if block.title:
            axes.text(
                0.0,
                row,
                block.title,
                transform=axes.get_yaxis_transform(),
                va="center",
                fontweight="bold",
                fontsize=8.5,
            )
            row += 1
        for arm in block.arms:
            ticks.append((row, arm.label_without(*block.shared)))
            _draw_row(axes, arm, row)
            row += 1
    axes.set_yticks([at for at, _ in ticks], [wrapped(label) for _, label in ticks], fontsize=8)
    axes.set_ylim(row - 0.5, -0.6)
    axes.set_xlim(left=max(axes.get_xlim()[0], 0.0))
    axes.set_xlabel("validation error (%)")
    axes.set_title("This study", loc="left", color="#222222")
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")


def _draw_row(axes: Axes, arm: Arm, row: int) -> None:
    look = LOOKS[arm.norm]
    errors = list(arm.errors.values())
    axes.plot(
        errors,
        [row] * len(errors),
        linestyle="none",
        marker=look.marker,
        color="white" if arm.is_recomputed else look.colour,
        markeredgecolor=look.colour if arm.is_recomputed else "white",
        markersize=6,
        alpha=0.75,
        zorder=3,
    )
    notes = []
    if arm.mean_error is not None:
        axes.plot([arm.mean_error] * 2, [row - 0.36, row + 0.36], color=look.colour, linewidth=1.8, zorder=2)
        notes.append(magnitude(arm.mean_error))
    if lost := len(arm.seeds(*LOST)):
        notes.append(f"{lost} of {len(arm.cells)} lost")
    axes.annotate(
        "\n".join(notes),
        (1.0, row),
        xycoords=axes.get_yaxis_transform(),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=look.colour if arm.errors else GREY,
        annotation_clip=False,
    )
