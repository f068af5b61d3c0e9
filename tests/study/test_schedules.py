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
