"""The published numbers against the table they were copied from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchfree.report import published_curves


def test_curves_are_table_2_of_the_paper() -> None:
    # Wu & He 2018 (arXiv 1803.08494v3), Table 2, as printed.
    by_norm = {
        curve.norm: dict(zip(curve.norm_batch, curve.error_percent, strict=True)) for curve in published_curves()
    }
    assert by_norm == {
        "bn": {32: 23.6, 16: 23.7, 8: 24.8, 4: 27.3, 2: 34.7},
        "gn": {32: 24.1, 16: 24.2, 8: 24.0, 4: 24.2, 2: 24.1},
    }


def test_every_curve_names_its_source_and_its_data() -> None:
    for curve in published_curves():
        assert "Wu & He 2018" in curve.source
        assert "Table 2" in curve.source
        assert "ImageNet" in curve.what


def test_package_data_holds_nothing_that_is_not_printed() -> None:
    import batchfree.report

    entries = json.loads((Path(batchfree.report.__file__).parent / "published.json").read_text())
    assert sorted(entries) == ["wu2018.t2.BN", "wu2018.t2.GN"]


def test_numbers_agree_with_the_collected_facts_and_were_seen_in_their_source() -> None:
    facts = Path(__file__).parents[2].parent / "shared" / "facts" / "published_numbers.json"
    if not facts.exists():
        pytest.skip(f"{facts} is not on this machine")
    entries = {entry["id"]: entry for entry in json.loads(facts.read_text())["entries"]}
    for curve in published_curves():
        entry = entries[f"wu2018.t2.{curve.norm.upper()}"]
        assert entry["seen"] is True
        assert (entry["x"], entry["y"]) == (list(curve.norm_batch), list(curve.error_percent))
