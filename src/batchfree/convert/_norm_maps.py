"""How far the maps of a converted network are from the trained one's, at every norm that both have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from batchfree.convert._batches import tensors_in
from batchfree.convert._norm_pairs import NormPair
from batchfree.torch import group_norm

__all__ = ["NormMaps"]


class NormMaps:
    """What the norms of both networks are given in one run of each.

    Compared is what they make of it, without activation and residual, which one network may have fused.
    """

    def __init__(self, pairs: list[NormPair]) -> None:
        self._pairs = pairs
        self._given: dict[nn.Module, list[Tensor]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keeps the inputs of all norms while networks run; those of an earlier run are forgotten."""
        self._given = {norm: [] for pair in self._pairs for norm in (pair.old, pair.new)}
        with ExitStack() as hooks:
            for norm in self._given:
                hooks.callback(norm.register_forward_pre_hook(self._record, with_kwargs=True).remove)
            yield

    def distance(self) -> Tensor:
        """Mean over the norms of the squared error over the variance of the old norm's output.

        A norm that met maps of other shapes in the two networks is left out, as in a detector's heads.
        """
        errors = [
            error
            for pair in self._pairs
            for x, y in zip(self._given[pair.old], self._given[pair.new], strict=False)
            if x.shape == y.shape and (error := _error(pair, x, y)) is not None
        ]
        return torch.stack(errors).mean() if errors else torch.zeros(())

    def _record(self, norm: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given, *_residual = tensors_in([inputs, named])
        self._given[norm].append(given)


def _error(pair: NormPair, x: Tensor, y: Tensor) -> Tensor | None:
    if x.numel() == 0:
        return None
    apart = [0, *range(2, x.dim())]
    with torch.no_grad():
        variance, mean = torch.var_mean(x.double(), apart, unbiased=False)
        scale, shift = (value.to(x) for value in pair.scale_and_shift(mean.cpu(), variance.cpu()))
        per_channel = (1, -1, *[1] * (x.dim() - 2))
        wanted = scale.reshape(per_channel) * x + shift.reshape(per_channel)
        spread = wanted.float().var(unbiased=False)
    if not spread > 0:
        return None
    new = pair.new
    given = group_norm(y, new.num_groups, new.weight, new.bias, new.eps)
    return (given - wanted).float().square().mean() / spread
