from __future__ import annotations

import doctest

import pytest

from batchfree.errors import ArgumentError
from batchfree.study import _bit_rule
from batchfree.study._bit_rule import bit_learning_rate, bit_rule


@pytest.mark.parametrize(
    ("train_images", "side", "steps", "sizes", "mixup"),
    # The paper, section 3.3: small below 20,000 examples, medium below 500,000; images below 96x96 become 160 and 128.
    [
        (3_680, 224, 500, (512, 480), 0.0),  # Oxford-IIIT Pets
        (50_000, 32, 10_000, (160, 128), 0.1),  # CIFAR-10
        (1_281_167, 224, 20_000, (512, 480), 0.1),  # ImageNet
        (19_999, 95, 500, (160, 128), 0.0),
        (20_000, 96, 10_000, (512, 480), 0.1),
        (499_999, 96, 10_000, (512, 480), 0.1),
        (500_000, 96, 20_000, (512, 480), 0.1),
    ],
)
def test_the_rule_is_the_papers(train_images: int, side: int, steps: int, sizes: tuple[int, int], mixup: float) -> None:
    rule = bit_rule(train_images, side * side)
    assert (rule.steps, rule.resize, rule.crop, rule.mixup_alpha) == (steps, *sizes, mixup)
    assert rule.supports[-1] == steps


def test_the_learning_rate_warms_up_and_falls_tenfold_after_each_support() -> None:
    rates = [bit_learning_rate(step, 1000) for step in range(500)]
    assert rates[0] == 0
    assert rates[50] == pytest.approx(0.0015)
    assert rates[100:201] == pytest.approx([0.003] * 101)
    assert rates[201:301] == pytest.approx([0.0003] * 100)
    assert rates[301:401] == pytest.approx([0.00003] * 100)
    assert rates[401:] == pytest.approx([0.000003] * 99)
    assert bit_learning_rate(6001, 50_000, base=1.0) == pytest.approx(0.01)
    assert bit_learning_rate(250, 600_000, base=1.0) == 0.5


def test_what_is_outside_the_rule_is_refused() -> None:
    for step, images in ((-1, 1000), (500, 1000), (10_000, 20_000)):
        with pytest.raises(ArgumentError, match="Stop there"):
            bit_learning_rate(step, images)
    with pytest.raises(ArgumentError, match="at least 1"):
        bit_rule(0, 100)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(_bit_rule).failed == 0
