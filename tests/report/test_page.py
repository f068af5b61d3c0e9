"""The page: what it says, that it loads nothing, and that text from outside stays text."""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from batchfree.report import build_report
from tests.report.page import Page
from tests.report.sample_study import SampleStudy

ATTACK = "<script>alert('x')</script>\"'&{{ 7 * 7 }}"


def whole_study() -> SampleStudy:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 10.2, 2: 10.1}).add("bn", 2, {0: 13.0, 1: 13.3, 2: 13.0})
    return study.add("gn", None, {0: 9.9, 1: 10.4, 2: 10.1}).add("ln", None, {0: 12.0, 1: 12.3, 2: 12.1})


def ragged_study() -> SampleStudy:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 10.2, 2: 10.1})
    study.add("bn", 1, {0: "diverged: loss is nan at step 3", 1: 30.0, 2: "missing"})
    return study.add("gn", None, {0: 9.9, 1: 10.5, 2: "failed: killed by signal 9"})


def page_of(study: SampleStudy, out: Path) -> Page:
    return Page(build_report(study.write(out)))


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(whole_study(), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def ragged_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(ragged_study(), tmp_path_factory.mktemp("ragged"))


def test_advice_stands_on_top_in_two_sentences(whole_page: Page) -> None:
    assert len(whole_page.advice) == 2
    assert whole_page.advice[1].startswith("Use Group Norm (GN) at norm batch 2")
    assert whole_page.text.index(whole_page.advice[0]) < whole_page.text.index("Error against norm batch")


def test_the_rule_and_the_limits_of_the_advice_are_stated(whole_page: Page) -> None:
    text = whole_page.text
    assert "Where at least one arm that lost no run is resolved better than Batch Norm" in text
    assert "it does not carry over to other networks, data or schedules" in text
    assert "“Best” is optimistic" in text


def test_table_of_differences_shows_hand_worked_numbers(whole_page: Page) -> None:
    rows = whole_page.table("Norm batch", "Arm")
    # At 2, GN: -3.1, -2.9, -2.9, mean -2.967, deviation 0.1155, half width 4.30265 * 0.1155 / sqrt(3) = 0.287.
    assert {key: rows[2][key] for key in ("Norm batch", "Arm", "Verdict", "Mean difference", "Seed pairs")} == {
        "Norm batch": "2",
        "Arm": "GN",
        "Verdict": "▼ better",
        "Mean difference": "−2.97",
        "Seed pairs": "3",
    }
    assert rows[2]["95 % interval"] == "−3.25 to −2.68"
    assert [(row["Norm batch"], row["Arm"], row["Verdict"]) for row in rows] == [
        ("32", "GN", "not resolved"),
        ("32", "LN", "▲ worse"),
        ("2", "GN", "▼ better"),
        ("2", "LN", "▼ better"),
    ]


def test_batch_norm_is_shown_against_itself(whole_page: Page) -> None:
    (row,) = whole_page.table("Norm batch", "Verdict")
    assert (row["Norm batch"], row["Verdict"], row["Mean difference"]) == ("2", "▲ worse", "+3.00")
    assert row["95 % interval"] == "+2.75 to +3.25"


def test_the_number_of_intervals_is_told_with_what_chance_makes_of_it(whole_page: Page) -> None:
    text = whole_page.text
    assert "The two tables hold 5 intervals. Each is a 95 % interval on its own: about 1 in 20" in text
    assert "here 0.25 of 5 on average" in text


def test_lost_runs_are_noted_beside_the_differences_they_are_missing_from(ragged_page: Page) -> None:
    rows = ragged_page.table("Norm batch", "Arm")
    assert [row["Note"] for row in rows] == [
        "GN diverged or failed in 1 more seed",
        "BN diverged or failed in 1 more seed",
    ]
    assert [row["Verdict"] for row in rows] == ["not resolved", "too few seeds"]


def test_equal_pairs_are_explained(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 11.0}).add("gn", None, {0: 9.0, 1: 10.0})
    (row,) = page_of(study, tmp_path).table("Norm batch", "Arm")
    assert (row["Mean difference"], row["95 % interval"], row["Verdict"]) == ("−1.00", "none", "not resolved")
    assert row["Note"].startswith("every pair gives the same difference")


def test_mean_table_shows_mean_deviation_and_count(ragged_page: Page) -> None:
    rows = [list(row.values()) for row in ragged_page.table("Arm", "Norm batch")]
    assert rows == [
        ["BN", "32", "10.1 %", "0.10", "3 of 3"],
        ["BN", "1", "30.0 %", "", "1 of 3"],
        ["GN", "any", "10.2 %", "0.42", "2 of 3"],  # 9.9 and 10.5: deviation 0.6 / sqrt(2)
    ]


def test_table_of_runs_has_every_cell_with_its_reason(ragged_page: Page) -> None:
    rows = ragged_page.table("Norm", "Norm batch")
    assert len(rows) == 9
    assert list(rows[0].values()) == [
        *["BN", "32", "0", "done", "10.00", "10.12", "9.75", "0.250", "12.5", "32", "", "1"]
    ]
    by_status = {row["Status"]: row for row in rows}
    # Where a run has no numbers, its reason spans their columns.
    assert list(by_status["diverged"].values())[4:9] == ["loss is nan at step 3", "", "", "", "12.5"]
    assert list(by_status["failed"].values())[4:9] == ["killed by signal 9", "", "", "", "12.5"]
    assert list(by_status["missing"].values())[4:9] == ["", "", "", "", ""]
    assert rows[6]["Norm batch"] == "any"
    assert rows[6]["Groups"] == "1/2/4"


def test_what_is_missing_is_counted_on_top(ragged_page: Page) -> None:
    text = ragged_page.text
    assert "6 of 9 runs finished" in text
    assert "1 of 9 runs has no result yet" in text
    assert "1 run diverged and 1 failed" in text
    assert "One seed only" not in text


def test_a_whole_study_has_no_such_notice(whole_page: Page) -> None:
    text = whole_page.text
    assert "12 of 12 runs finished" in text
    assert "no result yet" not in text
    assert "diverged and" not in text


def test_one_seed_is_told_and_gets_no_interval(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0}).add("bn", 2, {0: 13.0}).add("gn", None, {0: 9.0})
    page = page_of(study, tmp_path)
    assert "One seed only" in page.text
    assert {row["95 % interval"] for row in page.table("Norm batch", "Arm")} == {"none"}
    assert "intervals. Each" not in page.text


def test_without_batch_norm_the_page_says_that_there_are_no_differences(tmp_path: Path) -> None:
    page = page_of(SampleStudy().add("gn", None, {0: 9.0, 1: 9.5}), tmp_path)
    assert "This study has no Batch Norm runs, so there are no differences to show." in page.text


def test_protocol_paper_is_shown_with_its_own_caption(tmp_path: Path) -> None:
    study = SampleStudy(protocol="paper").add("bn", 32, {0: 10.0, 1: 10.5}).add("bn", 2, {0: 13.0, 1: 13.5})
    page = page_of(study.add("gn", 32, {0: 9.0, 1: 9.6}).add("gn", 2, {0: 9.0, 1: 9.6}), tmp_path)
    assert "SGD batch and learning rate follow the norm batch, so a change along the axis" in page.text
    assert [row["SGD batch"] for row in page.table("Norm", "Norm batch")] == ["256"] * 2 + ["16"] * 2 + ["256"] * 2 + [
        "16"
    ] * 2
    assert "any" not in {row["Norm batch"] for row in page.table("Arm", "Norm batch")}


def test_odd_numbers_are_shown_as_they_are(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 1e308, 1: math.nan, 2: 10.0})
    cell_id = study.cells[2].cell_id
    study.results[cell_id] = study.results[cell_id].model_copy(update={"validation_loss": 1e30})
    rows = page_of(study, tmp_path).table("Norm", "Norm batch")
    assert [row["Error"] for row in rows] == ["1e+308", "nan", "10.00"]
    assert rows[2]["Loss"] == "1e+30"


def test_every_run_has_its_own_command(ragged_page: Page) -> None:
    for cell in ragged_study().cells:
        assert cell.command(f"cells-alone/{cell.cell_id}") in ragged_page.text


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    study = SampleStudy(data=f"/data/{ATTACK}").add("bn", 32, {0: 10.0, 1: f"failed: {ATTACK}"})
    page = page_of(study, tmp_path)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.table("Norm", "Norm batch")[1]["Error"] == ATTACK
    assert page.terms["Data"].startswith(f"/data/{ATTACK}")
    assert f"--data /data/{ATTACK}" in page.text


def test_page_refers_to_nothing_outside_itself(ragged_page: Page) -> None:
    assert len(ragged_page.loaded) >= 5
    for address in ragged_page.loaded:
        assert address.startswith(("data:", "#")), address[:80]
    assert not {"script", "iframe", "object", "embed", "video", "audio", "form"} & {tag for tag, _ in ragged_page.tags}


def test_figures_are_inside_the_page_with_numbers_in_their_alternative_text(ragged_page: Page) -> None:
    (error_alt, error_svg), (curve_alt, curve_svg) = ragged_page.images
    figures = ragged_page.path.parent / "figures"
    assert error_svg == (figures / "error-vs-norm-batch.svg").read_text()
    assert curve_svg == (figures / "validation-curves.svg").read_text()
    assert "BN 10.1\u00a0% at 32, 30.0\u00a0% at 1; GN 10.2\u00a0% at any norm batch" in error_alt
    assert "BN 23.6 % at 32 and 34.7 % at 2; GN 24.1 % at 32 and 24.1 % at 2" in error_alt
    assert "norm batch 1: BN 30.0\u00a0%, GN 10.2\u00a0%" in curve_alt


def test_links_inside_the_page_lead_somewhere_and_ids_are_unique(ragged_page: Page) -> None:
    assert max(Counter(ragged_page.ids).values()) == 1
    for address in ragged_page.loaded:
        if address.startswith("#"):
            assert address[1:] in ragged_page.ids
    labels = [attributes["aria-labelledby"] for _, attributes in ragged_page.tags if "aria-labelledby" in attributes]
    assert set(labels) <= set(ragged_page.ids)


def test_headings_go_down_one_level_at_a_time(whole_page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in whole_page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_page_opens_in_a_browser_without_an_error(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        assert os.environ.get("CI") != "true", "CI must open the page in a browser, and there is no chromium on PATH"
        pytest.skip("no chromium on PATH")
    page = page_of(ragged_study(), tmp_path / "study")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --dump-dom"
    )
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", page.path.as_uri()]
    opened = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert opened.returncode == 0, opened.stderr
    assert "CONSOLE" not in opened.stderr, opened.stderr
    words = " ".join(re.sub("<[^>]*>", " ", opened.stdout).replace("&nbsp;", " ").split())
    for sentence in page.advice:
        assert sentence in words
