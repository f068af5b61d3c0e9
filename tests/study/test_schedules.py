from __future__ import annotations

import pytest

from batchfree.records import CellConfig
from batchfree.study._schedules import learning_rate_at


def test_schedules_by_hand(cell: CellConfig) -> None:
    cosine = cell.model_copy(update={"schedule": "cosine", "learning_rate": 0.2})
    assert learning_rate_at(cosine, 0, 100) == pytest.approx(0.2)
    assert learning_rate_at(cosine, 50, 100) == pytest.approx(0.1)
    assert learning_rate_at(cosine, 75, 100) == pytest.approx(0.2 * 0.1464466)
    steps = cell.model_copy(update={"schedule": "step", "learning_rate": 0.2})
    rates = [learning_rate_at(steps, step, 100) for step in (0, 29, 30, 59, 60, 89, 90, 99)]
    assert rates == pytest.approx([0.2, 0.2, 0.02, 0.02, 2e-3, 2e-3, 2e-4, 2e-4])


def test_bits_rule_is_stretched_over_the_run(cell: CellConfig) -> None:
    bit = cell.model_copy(update={"schedule": "bit", "learning_rate": 0.003})  # 160 images: 500 steps, 100 of warm-up
    for steps in (500, 50, 2000):
        rates = [learning_rate_at(bit, steps * share // 100, steps) for share in (0, 10, 30, 50, 70, 90)]
        assert rates == pytest.approx([0, 0.0015, 0.003, 0.0003, 0.00003, 0.000003])
