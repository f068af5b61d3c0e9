"""Pages that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchfree.report import build_report
from tests.report.page import Page
from tests.report.sample_study import SampleStudy, ragged_study, whole_study


def page_of(study: SampleStudy, out: Path) -> Page:
    return Page(build_report(study.write(out)))


@pytest.fixture(scope="session")
def whole_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(whole_study(), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def ragged_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(ragged_study(), tmp_path_factory.mktemp("ragged"))


@pytest.fixture(scope="session")
def joint_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("joint")
    second = SampleStudy(name="bit", title="Four & more", figure="bars", axes=("norm",))
    second.add("bn", 32, {0: 10.0, 1: 10.5}, recomputed={0: 9.0, 1: 9.5}).add("bn+ws", 32, {0: 9.0, 1: 9.75})
    return Page(
        build_report(
            ragged_study().write(out / "a"), second.write(out / "b"), whole_study().write(out / "c"), to=out / "r"
        )
    )
