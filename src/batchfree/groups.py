"""How C channels are split into groups: the one place that knows the rule and its messages.

A split is asked for by `num_groups`, by `channels_per_group`, or by `"auto"`: 16 channels per group, which is the
best group size in Wu & He 2018 (Table 3, bottom) and large enough to take over a trained network's statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from batchfree.errors import GroupError

__all__ = [
    "AUTO_CHANNELS_PER_GROUP",
    "MIN_VALUES_PER_GROUP",
    "check_values_per_group",
    "divisors",
    "resolve_num_groups",
]

#: Channels per group that `"auto"` aims at.
AUTO_CHANNELS_PER_GROUP = 16
#: `"auto"` makes groups larger until each holds this many values per sample, where the channels allow.
MIN_VALUES_PER_GROUP = 8


def divisors(number: int) -> list[int]:
    """Every divisor of `number` (>= 1), ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def resolve_num_groups(
    num_channels: int,
    num_groups: int | Literal["auto"] | None = None,
    *,
    channels_per_group: int | None = None,
    smallest_map: int | None = None,
) -> int:
    """The number of groups G that `num_channels` channels are split into.

    Args:
        num_channels: C, at least 1.
        num_groups: G itself, or `"auto"`; `None` means `channels_per_group` decides, or `"auto"` where that is
            `None` too.
        channels_per_group: C / G; pass either this or `num_groups`.
        smallest_map: spatial elements of the smallest input this layer will see (64 for 8x8). Only `"auto"` uses
            it: never so few channels per group that a group has under 8 values per sample, where C allows that.

    Returns:
        G, a divisor of `num_channels`.

    Raises:
        GroupError: the channels do not split as asked, a number is below 1, or both ways of asking are used.

    >>> resolve_num_groups(64, 32), resolve_num_groups(64, channels_per_group=8), resolve_num_groups(64, "auto")
    (32, 8, 4)
    >>> resolve_num_groups(40, "auto")  # 20 channels per group: the divisor of 40 nearest to 16
    2
    """
    _check_positive("num_channels", num_channels)
    if num_groups is not None and channels_per_group is not None:
        raise GroupError(
            f"both num_groups={num_groups!r} and channels_per_group={channels_per_group!r} were given. "
            "One of them decides the split. Drop the other."
        )
    if channels_per_group is not None:
        _check_positive("channels_per_group", channels_per_group)
        if num_channels % channels_per_group:
            raise GroupError(
                _indivisible(
                    num_channels,
                    f"groups of {channels_per_group} channels",
                    num_channels / channels_per_group,
                )
            )
        return num_channels // channels_per_group
    if num_groups is None or num_groups == "auto":
        return num_channels // _auto_channels_per_group(num_channels, smallest_map)
    _check_positive("num_groups", num_groups)
    if num_channels % num_groups:
        raise GroupError(_indivisible(num_channels, f"{num_groups} equal groups", num_groups))
    return num_groups


def check_values_per_group(num_channels: int, num_groups: int, spatial: Sequence[int]) -> None:
    """Refuses groups that hold one value per sample: it would be its own mean, and the output `bias` for any input.

    PyTorch counts the batch in its own guard and silently returns zeros (pytorch#19250); here the batch never counts.

    Args:
        num_channels: C.
        num_groups: G, a divisor of C.
        spatial: sizes of the input after the channel dimension; empty for (N, C).

    Raises:
        GroupError: C / G * prod(spatial) is 1.
    """
    if num_channels // num_groups * math.prod(spatial) != 1:
        return
    larger = [g for g in divisors(num_channels) if g < num_groups]
    mend = f"Pass num_groups={larger[-1]} or fewer" if larger else "Normalise a layer with more channels"
    shape = "x".join(map(str, spatial)) if spatial else "no spatial dimensions"
    raise GroupError(
        f"{num_channels} channels in {num_groups} groups on a map of {shape}: each group has one value per sample, "
        f"which is its own mean, so the output would not depend on the input. A group needs at least 2 values per "
        f"sample. {mend}, or remove this norm."
    )


def _auto_channels_per_group(num_channels: int, smallest_map: int | None) -> int:
    floor = 1 if smallest_map is None else math.ceil(MIN_VALUES_PER_GROUP / max(smallest_map, 1))
    large_enough = [d for d in divisors(num_channels) if d >= floor] or [num_channels]
    # At equal distance the larger group wins: it keeps more of a trained network (fewer statistics of its own).
    return min(large_enough, key=lambda d: (abs(d - AUTO_CHANNELS_PER_GROUP), -d))


def _indivisible(num_channels: int, asked: str, wanted_groups: float) -> str:
    fits = divisors(num_channels)
    nearest = min(fits, key=lambda groups: abs(groups - wanted_groups))
    return (
        f"{num_channels} channels do not split into {asked}. "
        f"Group counts that fit: {', '.join(map(str, fits))}. "
        f"Pass num_groups={nearest}, or channels_per_group={num_channels // nearest}."
    )


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise GroupError(f"{name}={value!r} was given. It must be a whole number of at least 1. Pass one.")
