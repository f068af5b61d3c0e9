"""The figure of docs/why-groups.md colours the values that its white dot is normalised with, and no others."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import pytest
import torch
import torch.nn.functional as F

FIGURES = Path(__file__).parent.parent / "docs" / "figures"

TorchNorm: TypeAlias = Callable[[torch.Tensor, int], torch.Tensor]

#: torch's own operator for each panel, of an (N, C, positions) block and the figure's number of groups.
NORMS: dict[str, TorchNorm] = {
    "bn": lambda x, groups: F.batch_norm(x, None, None, training=True),
    "ln": lambda x, groups: F.layer_norm(x, x.shape[1:]),
    "in": lambda x, groups: F.instance_norm(x),
    "gn": lambda x, groups: F.group_norm(x, groups),
}


@pytest.fixture(scope="module")
def figure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_shared_values", FIGURES / "draw_shared_values.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NORMS)
def test_the_coloured_values_are_those_that_reach_the_dotted_one(figure: ModuleType, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(figure.N, figure.C, figure.POSITIONS, dtype=torch.float64, generator=generator).requires_grad_()
    dotted = NORMS[name](x, figure.GROUPS)[figure.DOTTED]
    (slope,) = torch.autograd.grad(dotted, x)
    reaching = {tuple(place) for place in slope.nonzero().tolist()}
    assert figure.coloured_values(figure.NORMS[name]) == reaching


@pytest.mark.parametrize("name", NORMS)
def test_the_pieces_hold_every_value_once(figure: ModuleType, name: str) -> None:
    pieces = figure.pieces(figure.NORMS[name])
    for sample, channel in product(range(figure.N), range(figure.C)):
        assert sum(piece.holds(sample, channel) for piece in pieces) == 1


def test_the_committed_figure_is_what_its_code_draws(figure: ModuleType, tmp_path: Path) -> None:
    figure.main(tmp_path / "drawn.svg")
    drawn, committed = (path.read_bytes() for path in (tmp_path / "drawn.svg", FIGURES / "shared-values.svg"))
    assert drawn == committed, "run `python docs/figures/draw_shared_values.py` with the pinned matplotlib"
    assert len(committed) < 100_000
