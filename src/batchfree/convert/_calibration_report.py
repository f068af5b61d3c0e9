"""What `calibrate` says it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CalibrationReport", "CalibrationRow"]

#: Fewer images leave the fit nothing to be wrong on.
FEW_IMAGES = 16
#: Images of another scale than those of the training, up or down.
UNLIKE = 4.0
#: A residual of more than half of what the norm should give: what follows works on other values than it was trained on.
POOR_FIT = 0.7


@dataclass(frozen=True)
class CalibrationRow:
    """One norm."""

    name: str  #: its first dotted name
    channels: int
    num_groups: int
    eps: float
    #: Root of the mean squared difference from the old norm's output, over that output's deviation. 0 is equal, 1 is no
    #: better than a constant. `None` where it is not known: not reached, or the networks saw maps of different shapes.
    fit_error: float | None
    dead_channels: int = 0  #: channels that are constant on the images, before or after conversion
    note: str = ""
    filters_scaled: bool = False  #: whether the filters before it were, with `calibrate(filters="auto")`

    @property
    def fits_poorly(self) -> bool:
        """Whether half of the old norm's variance is not reproduced."""
        return self.fit_error is not None and self.fit_error > POOR_FIT


@dataclass(frozen=True)
class CalibrationReport:
    """Every norm's fit, and how far the two networks agree on the images; `print` shows it as a table."""

    rows: tuple[CalibrationRow, ...]
    #: How many the norms were fitted to, by the first one that they reach.
    images: int
    #: How many times further that norm's input is from its running mean than in training; 1 is alike.
    unlikeness: float
    #: Share of images (or pixels) to which both networks give the same class; `None` where outputs are no class scores.
    top1_agreement: float | None
    #: Size of the difference of all outputs over their size; `None` where they cannot be compared, as a detector's.
    relative_error: float | None

    @property
    def groups(self) -> Mapping[str, int]:
        """Groups by the norms' names, as `convert(groups=...)` takes them."""
        return {row.name: row.num_groups for row in self.rows}

    @property
    def eps(self) -> Mapping[str, float]:
        """Epsilons by the norms' names, as `convert(eps=...)` takes them."""
        return {row.name: row.eps for row in self.rows}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to look at: too few images, norms that fit badly, were not reached, or have constant channels."""
        poor = [row for row in self.rows if row.fits_poorly]
        of_all = (
            f"the norms were fitted to {self.images} images, which they may give back without having learned anything; "
            f"64 are enough for most networks"
            if self.images < FEW_IMAGES
            else "",
            f"the images are not like those of the training: what reaches the first norm is "
            f"{self.unlikeness:.2g} times as far from its running mean; prepare them as for training, "
            f"or the network is lost on those"
            if not 1 / UNLIKE < self.unlikeness < UNLIKE
            else "",
            f"{len(poor)} of {len(self.rows)} norms fit poorly, {max(poor, key=_error).name} worst "
            f"(error {max(map(_error, poor)):.2f}); more images, what is not 'auto' yet, or recover() may mend it"
            if poor
            else "",
        )
        of_rows = (
            f"{row.name}: {text}"
            for row in self.rows
            for text in (
                f"{row.dead_channels} of {row.channels} channels are constant on these images"
                if row.dead_channels
                else "",
                row.note,
            )
            if text
        )
        return (*filter(None, of_all), *of_rows)

    def __str__(self) -> str:
        width = max([4, *(len(row.name) for row in self.rows)])
        lines = [f"{'norm':{width}}  channels  groups  epsilon  filters  fit error"]
        lines += [
            f"{row.name:{width}}  {row.channels:8}  {row.num_groups:6}  {row.eps:7.3g}  "
            f"{'scaled' if row.filters_scaled else 'kept':>7}  {_number(row.fit_error):>9}"
            for row in self.rows
        ]
        if self.top1_agreement is not None:
            lines.append(f"top-1 agreement on these images: {100 * self.top1_agreement:.1f} %")
        lines.append(f"relative error of the outputs: {_number(self.relative_error)}")
        lines.append(f"images: {self.images}")
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def _error(row: CalibrationRow) -> float:
    return row.fit_error or 0.0


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
