"""Figures "error against norm batch" and "error against groups", with the published curves beside them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from batchfree.report._arms import Arm, Arms
from batchfree.report._axis_panel import axis_words_of, draw_axis_panel
from batchfree.report._figure import Figure
from batchfree.report._panels import Panel, PanelArms, arrange, split_into_panels
from batchfree.report._published import Exhibit
from batchfree.report._published_panel import published_panel, published_words

__all__ = ["POINTS", "groups_figure", "norm_batch_figure"]

#: What a point and a line are, in every figure of errors.
POINTS = "In colour: every point is one seed's validation error, the median of its last epochs; lines join means."
#: The same for runs that were evaluated twice.
RECOMPUTED = (
    " Dashed, with hollow points: the same Batch Norm runs, evaluated with running statistics computed anew from "
    "training images."
)


def norm_batch_figure(arms: Arms, exhibits: Sequence[Exhibit]) -> Figure:
    """A panel per network, or whatever else the arms differ in."""
    other = tuple(axis for axis in arms.axes if axis not in ("norm", "norm_batch", "groups", "channels_per_group"))
    parts = split_into_panels(arms.all, other) or [PanelArms("", {}, ())]
    label = "norm batch: images that share Batch Norm's statistics" if len(parts) == 1 else "norm batch"
    panels = [_axis_panel(part, "norm_batch", part.title or "This study", label) for part in parts]
    words = [
        f"{f'{part.title}: ' if part.title else ''}{axis_words_of(part.arms, 'norm_batch', 'any norm batch', other)}"
        for part in parts
    ]
    caption = POINTS
    if arms.tied:
        names = " and ".join(name.replace("_", " ").replace("sgd", "SGD") for name in arms.tied)
        caption += f" The norm batch changes the {names} too, so a change along the axis is not the norm batch's alone."
    elif arms.has_any_norm_batch:
        caption += (
            " A norm that does not see the norm batch ran once per seed: its line spans the range and its points stand "
            "in the column “any”."
        )
    return arrange(
        arms.all,
        [*panels, *map(published_panel, exhibits)],
        name="error-vs-norm-batch",
        heading="Error against norm batch",
        caption=caption + (RECOMPUTED if any(arm.is_recomputed for arm in arms.all) else ""),
        alt=f"Mean validation error against norm batch. {'. '.join(words)}.{published_words(exhibits)}",
        ratios=(2.1, 1.0) if len(panels) == 1 else (1.0, 1.0),
    )


def groups_figure(arms: Arms, exhibits: Sequence[Exhibit]) -> Figure:
    """Two panels, by the number of groups and by the channels in each, the published ones at their right."""
    by_count = [arm for arm in arms.all if not arm.sees("groups") or arm.value("channels_per_group") is None]
    by_size = [arm for arm in arms.all if not arm.sees("groups") or arm.value("channels_per_group") is not None]
    other = tuple(axis for axis in arms.axes if axis not in ("norm", "groups", "channels_per_group"))
    panels: list[Panel] = []
    words = []
    for axis, chosen, label in (
        ("groups", by_count, "number of groups"),
        ("channels_per_group", by_size, "channels per group"),
    ):
        if not any(arm.sees(axis) for arm in chosen):
            continue
        beside = [published_panel(exhibit) for exhibit in exhibits if exhibit.axis == axis]
        for part in split_into_panels(chosen, other):
            panels += [_axis_panel(part, axis, part.title or "This study", label), *beside]
            title = f"{part.title}, by {label}" if part.title else f"By {label}"
            words.append(f"{title}: {axis_words_of(part.arms, axis, 'any', other)}")
    return arrange(
        arms.all,
        panels or [_axis_panel(PanelArms("", {}, ()), "groups", "This study", "")],
        name="error-vs-groups",
        heading="Error against groups",
        caption=f"{POINTS} A layer with too few channels takes as many groups, or as large ones, as it can.",
        alt=f"Mean validation error against the split of the channels. {'. '.join(words)}.{published_words(exhibits)}",
    )


def _axis_panel(part: PanelArms, axis: str, title: str, label: str) -> Panel:
    arms: tuple[Arm, ...] = part.arms

    def draw(axes: Axes) -> None:
        draw_axis_panel(axes, arms, axis, title=title, label=label, said=tuple(part.shared))

    return Panel(draw, 4.1, 3.9)
