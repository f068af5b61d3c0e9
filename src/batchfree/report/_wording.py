"""How norms, numbers and lists are written on the page, in the advice and in the figures."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

from batchfree.records import CellConfig, Norm, Start

__all__ = [
    "LABEL_ORDER",
    "LONG_NAMES",
    "MEANINGS",
    "SHORT_NAMES",
    "START_MEANINGS",
    "START_NAMES",
    "AxisValue",
    "arm_label",
    "axis_words",
    "beginning",
    "enumerated",
    "length",
    "magnitude",
    "model_name",
    "p_value",
    "percent",
    "plain_number",
    "plural",
    "points",
    "setting_label",
    "signed_points",
]

#: A value of one of a configuration's fields.
AxisValue: TypeAlias = str | int | float | bool | None

SHORT_NAMES: dict[Norm, str] = {
    "none": "no norm",
    "bn": "BN",
    "bn-frozen": "frozen BN",
    "bn+ws": "BN+WS",
    "gn": "GN",
    "gn+ws": "GN+WS",
    "ln": "LN",
    "in": "IN",
}
LONG_NAMES: dict[Norm, str] = {
    "none": "no normalisation",
    "bn": "Batch Norm",
    "bn-frozen": "frozen Batch Norm",
    "bn+ws": "Batch Norm with Weight Standardization (BN+WS)",
    "gn": "Group Norm (GN)",
    "gn+ws": "Group Norm with Weight Standardization (GN+WS)",
    "ln": "Layer Norm (LN)",
    "in": "Instance Norm (IN)",
}

_WS = "with Weight Standardization of the convolutions before it: each filter has mean 0 and deviation 1."
#: What a norm normalises by, for the page's list of words.
MEANINGS: dict[Norm, str] = {
    "none": "The same network without any normalisation.",
    "bn": "Batch Norm: each channel by its statistics over the images of the norm batch and all positions.",
    "bn-frozen": "Batch Norm held as it was trained: its statistics, weights and biases stay.",
    "bn+ws": f"Batch Norm, {_WS}",
    "gn": "Group Norm: each image by itself, in groups of channels.",
    "gn+ws": f"Group Norm, {_WS}",
    "ln": "Layer Norm: Group Norm with all channels in one group.",
    "in": "Instance Norm: Group Norm with each channel a group of its own.",
}

#: What a run starts from: `Start`, with `scratch` apart from the weights that a study may give it.
Beginning: TypeAlias = Start | Literal["given"]
#: The same in a label.
START_NAMES: dict[Beginning, str] = {
    "scratch": "from scratch",
    "given": "given weights",
    "trained": "trained",
    "fresh": "new norms",
    "copied": "affine copied",
    "calibrated": "calibrated",
    "recovered": "calibrated and recovered",
}
#: The same for the page's list of words.
START_MEANINGS: dict[Beginning, str] = {
    "scratch": "Random initial weights, with a learning rate for these.",
    "given": "The weights that the study names, published or from a file, without the pre-training.",
    "trained": "The network of the pre-training as it is.",
    "fresh": "Convolutions and classifier of the pre-training; every Group Norm begins with weight 1 and bias 0.",
    "copied": "The same, with Batch Norm's weight and bias in Group Norm.",
    "calibrated": "The same, with Group Norm fitted to Batch Norm's outputs on unlabelled images of the new task.",
    "recovered": "Calibrated, and then distilled from the trained network on unlabelled images of the new task.",
}

#: In which order a label says an arm's axes; others follow as the study lists them.
LABEL_ORDER = ("model", "weights", "norm", "start", "groups", "channels_per_group", "norm_batch")


def arm_label(config: CellConfig, axes: Sequence[str], *, is_recomputed: bool = False) -> str:
    """What an arm is: its norm, and its values in the `axes` that vary.

    Args:
        is_recomputed: it is evaluated with Batch Norm's statistics computed anew.
    """
    parts = []
    for axis in dict.fromkeys([*(axis for axis in LABEL_ORDER if axis in axes or axis == "norm"), *axes]):
        if axis == "start" and config.norm == "bn-frozen":
            continue  # nothing else can be frozen than what was trained
        if axis == "norm":
            parts.append(SHORT_NAMES[config.norm] + (", statistics recomputed" if is_recomputed else ""))
        elif _is_said(config, axis):
            parts.append(_words(config, axis))
    return ", ".join(parts)


def setting_label(config: CellConfig, axes: Sequence[str]) -> str:
    """The values in `axes` without the norm: what a panel's arms share. Empty where none of them says anything."""
    named = [axis for axis in LABEL_ORDER if axis in axes]
    return ", ".join(
        _words(config, axis) for axis in dict.fromkeys([*named, *axes]) if axis != "norm" and _is_said(config, axis)
    )


def _is_said(config: CellConfig, axis: str) -> bool:
    if axis == "groups":
        return config.norm in ("gn", "gn+ws") and config.channels_per_group is None
    return axis not in ("norm_batch", "channels_per_group") or getattr(config, axis) is not None


def beginning(config: CellConfig) -> Beginning:
    """What the run starts from."""
    return "given" if config.start == "scratch" and config.weights is not None else config.start


def _words(config: CellConfig, axis: str) -> str:
    return START_NAMES[beginning(config)] if axis == "start" else axis_words(axis, getattr(config, axis))


def axis_words(axis: str, value: AxisValue) -> str:
    """A value of an axis in words.

    >>> axis_words("norm_batch", 8), axis_words("groups", 1), axis_words("zero_gamma", True)
    ('norm batch 8', '1 group', 'last gamma 0')
    >>> axis_words("learning_rate", 0.001), axis_words("optimizer", "adam"), axis_words("image_size", None)
    ('learning rate 0.001', 'Adam', 'image size default')
    """
    if axis == "model":
        return model_name(str(value))
    if axis == "groups":
        return plural(value, "group") if isinstance(value, int) else "automatic groups"
    if axis == "channels_per_group":
        return f"{'1 channel' if value == 1 else f'{value} channels'} per group"
    if axis == "weights":
        return "from scratch" if value is None else "pretrained" if value == "pretrained" else f"weights {value}"
    if axis == "zero_gamma":
        return "last gamma as the network has it" if value is None else f"last gamma {0 if value else 1}"
    if axis == "optimizer":
        return {"sgd": "SGD", "adam": "Adam"}.get(str(value), str(value))
    name = axis.replace("_", " ").replace("sgd", "SGD")
    return f"{name} {f'{value:g}' if isinstance(value, float) else 'default' if value is None else value}"


def model_name(model: str) -> str:
    """A network as papers write it; as it was given where that is not known.

    >>> model_name("resnet20"), model_name("torchvision:resnet50"), model_name("vgg16-small")
    ('ResNet-20', 'ResNet-50', 'VGG-16 (small)')
    """
    found = re.fullmatch(r"(?:\w+:)?(resnet|vgg)(\d+)(?:_bn)?(-small)?", model)
    if found is None:
        return model
    family = {"resnet": "ResNet", "vgg": "VGG"}[found[1]]
    return f"{family}-{found[2]}{' (small)' if found[3] else ''}"


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


def length(config: CellConfig) -> str:
    """How long a run is: "72 epochs, to step 500" where steps end the last of them."""
    epochs = plural(config.epochs, "epoch")
    return epochs if config.max_steps is None else f"{epochs}, to step {config.max_steps:,}"


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


def p_value(value: float | None) -> str:
    """A probability with two digits that matter.

    >>> p_value(0.0312), p_value(0.00004), p_value(1.0), p_value(None)
    ('0.031', '< 0.001', '1.00', '')
    """
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def plain_number(value: float | None, decimals: int = 3) -> str:
    """Any number for a table cell: losses may be huge, infinite or NaN. Empty where there is none.

    >>> plain_number(1.23456), plain_number(1e30), plain_number(float("nan")), plain_number(None)
    ('1.235', '1e+30', 'nan', '')
    """
    if value is None:
        return ""
    return f"{value:.{decimals}f}" if math.isfinite(value) and abs(value) < 1000 else f"{value:.3g}"
