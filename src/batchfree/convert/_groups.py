"""How many groups each norm of a network gets, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from batchfree.errors import ArgumentError, GroupError, unknown_name
from batchfree.groups import AUTO_CHANNELS_PER_GROUP, MIN_VALUES_PER_GROUP, check_values_per_group, resolve_num_groups

__all__ = ["Groups", "GroupsRequest", "Norm"]

Norm: TypeAlias = Literal["gn", "ln", "in"]
#: How many groups: "auto", from the dotted name of a norm, or from its number of channels.
Groups: TypeAlias = "Literal['auto'] | Mapping[str, int] | Callable[[int], int]"


@dataclass(frozen=True)
class GroupsRequest:
    """What was asked for; checked when it is made.

    Raises:
        ArgumentError: an unknown norm, several ways of asking at once, or groups for a norm that fixes its own.
    """

    norm: Norm
    groups: Groups
    num_groups: int | None
    channels_per_group: int | None

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ArgumentError(unknown_name("norm", str(self.norm), get_args(Norm)))
        asked = {
            name: value
            for name, value, default in (
                ("groups", self.groups, "auto"),
                ("num_groups", self.num_groups, None),
                ("channels_per_group", self.channels_per_group, None),
            )
            if value is not default and value != default
        }
        shown = ", ".join(f"{name}={value!r}" for name, value in asked.items())
        if self.norm != "gn" and asked:
            raise ArgumentError(
                f"{shown} was given with norm={self.norm!r}, which fixes its groups. Groups are for 'gn'. "
                f"Leave them out, or pass norm='gn'."
            )
        if len(asked) > 1:
            raise ArgumentError(f"{shown} were given. One of them decides the split. Drop the others.")
        if "groups" in asked and not (isinstance(self.groups, Mapping) or callable(self.groups)):
            raise ArgumentError(
                f"{shown} was given. It must be 'auto', a mapping from dotted names to numbers of groups, or a "
                f"function of the channels. Pass num_groups=8 for the same number everywhere."
            )

    def unknown_names(self, known: set[str]) -> list[str]:
        """Names in a mapping of groups that no norm has."""
        return [name for name in self.groups if name not in known] if isinstance(self.groups, Mapping) else []

    def choose(self, names: tuple[str, ...], channels: int, smallest_map: tuple[int, ...] | None) -> tuple[int, str]:
        """The groups of one norm, and why.

        Args:
            names: its dotted names.
            channels: its channels.
            smallest_map: the smallest spatial size it was seen with; () for (N, C); `None` where it was not seen.

        Raises:
            GroupError: they do not divide the channels, or each would have one value per sample.
        """
        num_groups, why = self._chosen(names, channels, smallest_map)
        if smallest_map is not None:
            try:
                check_values_per_group(channels, num_groups, smallest_map)
            except GroupError as error:
                mend = " Or pass norm='gn', which chooses larger groups." if self.norm == "in" and channels > 1 else ""
                raise GroupError(f"{error}{mend}") from None
        return num_groups, why

    def _chosen(self, names: tuple[str, ...], channels: int, smallest_map: tuple[int, ...] | None) -> tuple[int, str]:
        if self.norm == "ln":
            return 1, "ln: one group"
        if self.norm == "in":
            return channels, "in: a group per channel"
        if self.channels_per_group is not None:
            return resolve_num_groups(channels, channels_per_group=self.channels_per_group), "channels_per_group"
        if self.num_groups is not None:
            return resolve_num_groups(channels, self.num_groups), "num_groups"
        if isinstance(self.groups, Mapping):
            given = [self.groups[name] for name in names if name in self.groups]
            if given:
                return resolve_num_groups(channels, given[0]), "given for this norm"
        elif callable(self.groups):
            return resolve_num_groups(channels, self.groups(channels)), "given by a function of the channels"
        return _automatic(channels, smallest_map)


def _automatic(channels: int, smallest_map: tuple[int, ...] | None) -> tuple[int, str]:
    free = resolve_num_groups(channels, "auto")
    if smallest_map is None:
        return free, f"auto: groups of about {AUTO_CHANNELS_PER_GROUP} channels"
    chosen = resolve_num_groups(channels, "auto", smallest_map=math.prod(smallest_map))
    if chosen == free:
        return free, f"auto: groups of about {AUTO_CHANNELS_PER_GROUP} channels"
    return chosen, f"auto: enlarged towards {MIN_VALUES_PER_GROUP} values per group"
