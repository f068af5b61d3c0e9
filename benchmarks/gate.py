"""No timing of a wrong result: ours against torch's operators in float64, output and every gradient."""

from __future__ import annotations

from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contenders import contenders

__all__ = ["failures"]

#: As in tests/closeness.py: relative to the value and to the largest value.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1.6e-2}


def failures(case: Case) -> list[str]:
    """What is wrong with our results for `case`; empty where nothing is."""
    both = contenders(case)
    mine, exact = both["ours"], both["torch"].doubled()
    found = [mine.run(*mine.leaves).detach(), *mine.gradients()]
    wanted = [exact.run(*exact.leaves).detach(), *exact.gradients()]
    names = ("output", "gradient of the input", "gradient of weight", "gradient of bias")
    return [
        f"{case.name}: {name} is off by {(value.double() - expected).abs().max():.3g}"
        for name, value, expected in zip(names, found, wanted, strict=False)
        if not _is_close(value, expected)
    ]


def _is_close(value: Tensor, expected: Tensor) -> bool:
    tolerance = TOLERANCE[str(value.dtype).removeprefix("torch.")]
    allowed = tolerance * (expected.abs() + expected.abs().max())
    return bool(((value.double() - expected).abs() <= allowed).all())
