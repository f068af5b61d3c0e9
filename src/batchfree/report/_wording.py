"""How norms, numbers and lists are written on the page, in the advice and in the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchfree.records import Norm

__all__ = [
    "LONG_NAMES",
    "MEANINGS",
    "SHORT_NAMES",
    "enumerated",
    "magnitude",
    "percent",
    "plain_number",
    "plural",
    "points",
    "signed_points",
]

SHORT_NAMES: dict[Norm, str] = {"bn": "BN", "gn": "GN", "gn+ws": "GN+WS", "ln": "LN", "in": "IN"}
LONG_NAMES: dict[Norm, str] = {
    "bn": "Batch Norm",
    "gn": "Group Norm (GN)",
    "gn+ws": "Group Norm with Weight Standardization (GN+WS)",
    "ln": "Layer Norm (LN)",
    "in": "Instance Norm (IN)",
}

#: What a norm normalises by, for the page's list of words.
MEANINGS: dict[Norm, str] = {
    "bn": "Batch Norm: each channel by its statistics over the images of the norm batch and all positions.",
    "gn": "Group Norm: each image by itself, in groups of channels.",
    "gn+ws": "Group Norm, with Weight Standardization of the convolutions before it: each filter has mean 0 and "
    "deviation 1.",
    "ln": "Layer Norm: Group Norm with all channels in one group.",
    "in": "Instance Norm: Group Norm with each channel a group of its own.",
}


def enumerated(words: Sequence[object]) -> str:
    """The words as a list in a sentence.

    >>> enumerated([8]), enumerated([8, 4]), enumerated([8, 4, 2])
    ('8', '8 and 4', '8, 4 and 2')
    """
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "seed"), plural(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def magnitude(value: float | None) -> str:
    """A rate or a difference of rates without its sign: one decimal from 10 on, two below, where seeds differ by less.

    Empty where there is none, as in the functions below.

    >>> magnitude(12.648), magnitude(-0.555)
    ('12.6', '0.56')
    """
    if value is None:
        return ""
    size = abs(value)
    return f"{size:.1f}" if size >= 10 else f"{size:.2f}"


def percent(value: float | None) -> str:
    """An error rate. The space before the sign does not break a line.

    >>> percent(12.648), percent(0.555), percent(None)
    ('12.6\\xa0%', '0.56\\xa0%', '')
    """
    return "" if value is None else f"{magnitude(value)}\u00a0%"


def points(value: float | None) -> str:
    """The size of a difference of error rates, without its sign.

    >>> points(-1.234), points(1.0)
    ('1.23 points', '1.00 points')
    """
    return "" if value is None else f"{magnitude(value)} points"


def signed_points(value: float | None) -> str:
    """A difference of error rates with its sign, the minus as wide as the plus.

    >>> signed_points(0.5), signed_points(-12.34), signed_points(-0.001)
    ('+0.50', '−12.3', '−0.00')
    """
    return "" if value is None else f"{'−' if value < 0 else '+'}{magnitude(value)}"


def plain_number(value: float | None, decimals: int = 3) -> str:
    """Any number for a table cell: losses may be huge, infinite or NaN. Empty where there is none.

    >>> plain_number(1.23456), plain_number(1e30), plain_number(float("nan")), plain_number(None)
    ('1.235', '1e+30', 'nan', '')
    """
    if value is None:
        return ""
    return f"{value:.{decimals}f}" if math.isfinite(value) and abs(value) < 1000 else f"{value:.3g}"
