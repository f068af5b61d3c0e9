"""How the page is built for readers, keyboards, screen readers and browsers."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from batchfree.report import build_report
from tests.report.page import Page
from tests.report.sample_study import ragged_study


def test_several_studies_have_a_table_of_contents_that_leads_to_each_of_them(joint_page: Page) -> None:
    titles = [text for level, text in joint_page.headings if level == 2]
    assert titles == ["Contents", *titles[1:4], "How the numbers are made", "Words"]
    assert titles[2] == "Four & more"
    links = [attributes["href"] for tag, attributes in joint_page.tags if tag == "a"]
    assert {"#norm-batch-study", "#bit-study", "#norm-batch-2-study", "#bit-errors", "#bit-runs"} <= set(links)
    assert "3 studies · 22 of 25 runs finished" in joint_page.text


@pytest.mark.parametrize("name", ["ragged_page", "joint_page"])
def test_page_has_landmarks_and_a_skip_link_first(name: str, request: pytest.FixtureRequest) -> None:
    page: Page = request.getfixturevalue(name)
    names = [tag for tag, _ in page.tags]
    assert [names.count(landmark) for landmark in ("header", "nav", "main")] == [1, 1, 1]
    first_link = next(attributes for tag, attributes in page.tags if tag == "a")
    assert first_link["href"] == "#main"
    assert [attributes["id"] for tag, attributes in page.tags if tag == "main"] == ["main"]
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert all("scope" in attributes for attributes in headers)


@pytest.mark.parametrize("name", ["ragged_page", "joint_page"])
def test_links_inside_the_page_lead_somewhere_and_ids_are_unique(name: str, request: pytest.FixtureRequest) -> None:
    page: Page = request.getfixturevalue(name)
    assert max(Counter(page.ids).values()) == 1
    for address in page.loaded:
        if address.startswith("#"):
            assert address[1:] in page.ids
    labels = [attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes]
    assert set(labels) <= set(page.ids)


@pytest.mark.parametrize("name", ["whole_page", "joint_page"])
def test_headings_go_down_one_level_at_a_time(name: str, request: pytest.FixtureRequest) -> None:
    page: Page = request.getfixturevalue(name)
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_page_opens_in_a_browser_without_an_error(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        assert os.environ.get("CI") != "true", "CI must open the page in a browser, and there is no chromium on PATH"
        pytest.skip("no chromium on PATH")
    page = Page(build_report(ragged_study().write(tmp_path / "study")))
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
