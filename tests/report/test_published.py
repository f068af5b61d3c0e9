"""The published numbers against the tables they were copied from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from batchfree.report import Exhibit, published_exhibits
from tests.report.sample_study import SampleStudy

STUDIES = ("norm-batch", "norms", "groups", "depth", "vgg", "pets", "bit", "recipe")


def exhibits(name: str) -> tuple[Exhibit, ...]:
    return published_exhibits(SampleStudy(name=name, figure="bars").record(Path("out")))


def printed(exhibit: Exhibit) -> Mapping[str, tuple[float, ...]]:
    return {series.label: series.printed for series in exhibit.series}


def test_norm_batch_is_shown_beside_table_2_of_the_paper() -> None:
    # Wu & He 2018 (arXiv 1803.08494v3), Table 2, as printed.
    (table,) = exhibits("norm-batch")
    assert table.x == (32, 16, 8, 4, 2)
    assert printed(table) == {"BN": (23.6, 23.7, 24.8, 27.3, 34.7), "GN": (24.1, 24.2, 24.0, 24.2, 24.1)}


def test_groups_are_shown_beside_both_halves_of_table_3() -> None:
    by_count, by_size = exhibits("groups")
    assert by_count.x == by_size.x == (64, 32, 16, 8, 4, 2, 1)
    assert printed(by_count) == {"GN": (24.6, 24.1, 24.6, 24.4, 24.6, 24.7, 25.3)}
    assert printed(by_size) == {"GN": (24.4, 24.5, 24.2, 24.3, 24.8, 25.6, 28.4)}


def test_accuracies_are_drawn_as_errors_and_kept_as_printed() -> None:
    (table,) = exhibits("bit")
    assert printed(table) == {"BN": (75.6,), "BN+WS": (75.8,), "GN": (70.2,), "GN+WS": (76.0,)}
    assert [table.errors(series)[0] for series in table.series] == pytest.approx([24.4, 24.2, 29.8, 24.0])


def test_the_blogs_confounds_are_named_and_its_continued_runs_left_out() -> None:
    (blog,) = exhibits("pets")
    assert all(word in blog.caveat for word in ("Cutout", "batch 64", "36.54 and 33.90"))
    assert not any("64" in series.label for series in blog.series)


def test_a_users_own_study_is_shown_with_what_belongs_to_its_figure() -> None:
    own = SampleStudy(name="my-study", figure="groups").record(Path("out"))
    assert published_exhibits(own) == exhibits("groups")
    assert exhibits("my-study") == ()


def test_every_number_names_its_source_and_its_data() -> None:
    for exhibit in (each for name in STUDIES for each in exhibits(name)):
        assert "arXiv" in exhibit.source or "amaarora" in exhibit.source
        assert "ImageNet" in exhibit.what or "Pets" in exhibit.what
        assert all(len(series.printed) == (len(exhibit.x) or 1) for series in exhibit.series)


def test_numbers_agree_with_the_collected_facts_and_were_seen_in_their_source() -> None:
    facts = Path(__file__).parents[2].parent / "shared" / "facts" / "published_numbers.json"
    if not facts.exists():
        pytest.skip(f"{facts} is not on this machine")
    entries = {entry["id"]: entry for entry in json.loads(facts.read_text())["entries"]}
    for exhibit in (each for name in STUDIES for each in exhibits(name)):
        for series in exhibit.series:
            entry = entries[series.fact]
            assert entry["seen"] is True
            if not series.key:
                assert (entry["x"], entry["y"]) == (list(exhibit.x), list(series.printed))
            elif "x" in entry:
                assert entry["y"][entry["x"].index(int(series.key))] == series.printed[0]
            else:
                # The blog gives best and last; the best is shown.
                value = entry["y"][series.key]
                assert (value[0] if isinstance(value, list) else value) == series.printed[0]
