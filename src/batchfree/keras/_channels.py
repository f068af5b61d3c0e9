"""Where the channels of a Keras input are, and how they split: the checks of the public door."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from batchfree.errors import ArgumentError, GroupError
from batchfree.groups import check_values_per_group, resolve_num_groups

__all__ = ["Channels", "check_epsilon", "check_groups", "find_channels", "known_sizes", "resolve_groups"]


class Channels(NamedTuple):
    """The channel dimension of an input: `size` channels in the dimensions `first` to `last`, counted from 0."""

    first: int
    last: int
    size: int


def known_sizes(tensor: Any) -> list[Any]:
    """The sizes of `tensor` as whole numbers, `None` or a backend's symbol where one is not known.

    While torch traces, which Keras's ONNX export does, each size is itself a tensor.
    """
    return [int(size) if hasattr(size, "item") else size for size in tensor.shape]


def find_channels(axis: int | Sequence[int], shape: Sequence[int | None]) -> Channels:
    """The dimensions of `shape` that `axis` names.

    Args:
        axis: one dimension, or several neighbouring ones which together are the channels; negative counts from the end.
        shape: the input's shape, `None` where a size is not known.

    Raises:
        ArgumentError: a dimension is out of range, is the batch, is named twice, has no known size, or the dimensions
            are not neighbours.
    """
    rank = len(shape)
    given = [axis] if isinstance(axis, int) else list(axis)
    if not given or any(isinstance(one, bool) or not isinstance(one, int) or not -rank <= one < rank for one in given):
        raise ArgumentError(
            f"axis={axis!r} is out of bounds for an input of shape {tuple(shape)}. "
            f"Allowed: 1 to {rank - 1}, or -1 to {1 - rank}. Pass the dimension that holds the channels."
        )
    dims = sorted(one % rank for one in given)
    if dims[0] == 0:
        raise ArgumentError(
            f"axis={axis!r} names dimension 0 of shape {tuple(shape)}, which is the batch. "
            "Group Norm never looks across the batch. Pass the dimension that holds the channels."
        )
    if dims != list(range(dims[0], dims[0] + len(dims))):
        raise ArgumentError(
            f"axis={axis!r} was given for shape {tuple(shape)}. Several dimensions must be different neighbours, which "
            "together are the channels. Transpose the input, or pass one dimension."
        )
    total = 1
    for dim in dims:
        size = shape[dim]
        if size is None:
            raise ArgumentError(
                f"axis {axis!r} of the input tensor should have a defined dimension but the layer received an input "
                f"with shape {tuple(shape)}. The number of channels must be known. Give keras.Input that size."
            )
        total *= size
    return Channels(dims[0], dims[-1], total)


def check_groups(groups: int) -> None:
    """Refuses what can never be a number of groups.

    Raises:
        GroupError: `groups` is neither a whole number of at least 1 nor -1.
    """
    if isinstance(groups, bool) or not isinstance(groups, int) or (groups < 1 and groups != -1):
        raise GroupError(
            f"argument `groups` is {groups!r}. It must be a whole number of at least 1, or -1 for one group per "
            "channel (Instance Norm). Pass one of them."
        )


def check_epsilon(epsilon: float) -> None:
    """Refuses an epsilon with which a constant group would divide by zero.

    Raises:
        ArgumentError: `epsilon` is not above 0.
    """
    if not epsilon > 0:
        raise ArgumentError(f"epsilon={epsilon!r} was given. It must be above 0. Keras's default is 1e-3.")


def resolve_groups(
    channels: Channels, shape: Sequence[int | None], groups: int, channels_per_group: int | None = None
) -> int:
    """The number of groups, after every check of `batchfree.groups` that the known sizes allow.

    Args:
        channels: what `find_channels` gave for `shape`.
        shape: the input's shape, `None` where a size is not known.
        groups: G, or -1 for one group per channel; ignored where `channels_per_group` is given.
        channels_per_group: C / G.

    Raises:
        GroupError: the channels do not split, or each group would hold one value per sample.
    """
    check_groups(groups)
    try:
        if channels_per_group is not None:
            count = resolve_num_groups(channels.size, channels_per_group=channels_per_group)
        else:
            count = channels.size if groups == -1 else resolve_num_groups(channels.size, groups)
        spatial = [size for dim, size in enumerate(shape) if dim and not channels.first <= dim <= channels.last]
        known = [size for size in spatial if size is not None]
        if len(known) == len(spatial):
            check_values_per_group(channels.size, count, known)
    except GroupError as error:
        # Keras calls the number of groups `groups`: the mend must be one that can be typed.
        raise GroupError(str(error).replace("num_groups", "groups")) from None
    return count
