from __future__ import annotations

import doctest
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfree import groups
from batchfree.errors import GroupError
from batchfree.groups import check_values_per_group, divisors, resolve_num_groups


@given(st.integers(1, 3000))
def test_divisors_are_exactly_the_numbers_that_divide(number: int) -> None:
    assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]


@pytest.mark.parametrize(
    ("channels", "num_groups"), [(16, 1), (32, 2), (64, 4), (2048, 128), (24, 2), (40, 2), (48, 3), (7, 1), (17, 1)]
)
def test_auto_aims_at_sixteen_channels_per_group(channels: int, num_groups: int) -> None:
    assert resolve_num_groups(channels, "auto") == num_groups
    assert resolve_num_groups(channels) == num_groups


@given(st.integers(1, 2048), st.integers(1, 64))
def test_auto_never_leaves_a_group_under_eight_values_where_the_channels_allow(
    channels: int, smallest_map: int
) -> None:
    size = channels // resolve_num_groups(channels, "auto", smallest_map=smallest_map)
    assert size * smallest_map >= min(8, channels * smallest_map)


def test_auto_grows_groups_only_as_far_as_a_small_map_needs() -> None:
    # 17 channels: a prime, so groups of 1 or of 17, and 17 is nearer to 16 anyway.
    # 22 channels: 11 or 22 are near 16; on any map of at least one element 11 channels hold 8 values.
    assert resolve_num_groups(22, "auto", smallest_map=1) == 2
    # 6 channels on one element cannot reach 8 values: the best there is, one group.
    assert resolve_num_groups(6, "auto", smallest_map=1) == 1


@given(st.integers(1, 512), st.integers(1, 512))
def test_a_split_divides_or_is_refused_with_a_mend_that_works(channels: int, asked: int) -> None:
    for keyword in ("num_groups", "channels_per_group"):
        if channels % asked == 0:
            resolved = resolve_num_groups(channels, **{keyword: asked})
            assert resolved == (asked if keyword == "num_groups" else channels // asked)
            continue
        with pytest.raises(GroupError) as caught:
            resolve_num_groups(channels, **{keyword: asked})
        mend = re.search(r"Pass num_groups=(\d+), or channels_per_group=(\d+)\.", str(caught.value))
        assert mend is not None
        num_groups, channels_per_group = int(mend[1]), int(mend[2])
        assert resolve_num_groups(channels, num_groups) == num_groups
        assert resolve_num_groups(channels, channels_per_group=channels_per_group) == num_groups


def test_both_ways_of_asking_at_once_are_refused() -> None:
    with pytest.raises(GroupError, match=r"num_groups=2 and channels_per_group=4|both"):
        resolve_num_groups(8, 2, channels_per_group=4)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "32"])
def test_numbers_that_are_not_positive_whole_numbers_are_refused(bad: object) -> None:
    for arguments in ((bad, 1, None), (8, bad, None), (8, None, bad)):
        with pytest.raises(GroupError, match="whole number"):
            resolve_num_groups(arguments[0], arguments[1], channels_per_group=arguments[2])  # type: ignore[arg-type]


@pytest.mark.parametrize("spatial", [(), (1,), (1, 1), (1, 1, 1)])
def test_one_value_per_group_per_sample_is_refused_with_a_mend_that_works(spatial: tuple[int, ...]) -> None:
    with pytest.raises(GroupError) as caught:
        check_values_per_group(6, 6, spatial)
    mend = re.search(r"Pass num_groups=(\d+)", str(caught.value))
    assert mend is not None
    check_values_per_group(6, int(mend[1]), spatial)


def test_a_single_channel_on_a_single_element_has_no_group_count_to_propose() -> None:
    with pytest.raises(GroupError, match="remove this norm") as caught:
        check_values_per_group(1, 1, (1, 1))
    assert "num_groups=" not in str(caught.value)


@pytest.mark.parametrize(("num_groups", "spatial"), [(6, (2,)), (3, ()), (6, (0, 4)), (1, (1, 1))])
def test_groups_with_another_number_of_values_pass(num_groups: int, spatial: tuple[int, ...]) -> None:
    check_values_per_group(6, num_groups, spatial)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(groups).failed == 0
