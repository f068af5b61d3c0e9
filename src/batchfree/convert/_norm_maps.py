"""How far the maps of a converted network are from the trained one's, at every norm that both have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from batchfree.convert._batches import tensors_in
from batchfree.convert._map_moments import map_moments
from batchfree.convert._norm_pairs import NormPair
from batchfree.torch import group_norm

__all__ = ["NormMaps"]


class NormMaps:
    """What the norms of both networks are given while they run, and how far what they make of it is apart.

    That is without activation and residual, which one network may have fused.
    """

    def __init__(self, pairs: list[NormPair]) -> None:
        self._pairs = pairs
        self._given: dict[nn.Module, list[Tensor]] = {}
        self._frozen: dict[NormPair, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keeps the inputs of all norms that run meanwhile, and lets go of them at the end."""
        self._given = {norm: [] for pair in self._pairs for norm in (pair.old, pair.new)}
        try:
            with ExitStack() as hooks:
                for norm in self._given:
                    hooks.callback(norm.register_forward_pre_hook(self._record, with_kwargs=True).remove)
                yield
        finally:
            self._given = {}

    def distance(self) -> Tensor:
        """Of what was recorded: the squared error over the variance of the old output, averaged over the norms' calls.

        A call that met maps of other shapes in the two networks is left out, as in a detector's heads.
        """
        errors = [
            error
            for pair in self._pairs
            for x, y in zip(self._given[pair.old], self._given[pair.new], strict=False)
            if x.shape == y.shape and x.numel() and (error := self._error(pair, x, y)) is not None
        ]
        return torch.stack([error.to(errors[0].device) for error in errors]).mean() if errors else torch.zeros(())

    def _record(self, norm: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = next(iter(tensors_in([inputs, named])), None)
        if given is not None:
            self._given[norm].append(given)

    def _error(self, pair: NormPair, x: Tensor, y: Tensor) -> Tensor | None:
        wide = torch.promote_types(x.dtype, torch.float32)  # as the norms compute inside
        with torch.no_grad():
            per_channel = (1, -1, *[1] * (x.dim() - 2))
            scale, shift = (value.to(x.device, wide).reshape(per_channel) for value in self._scale_and_shift(pair, x))
            wanted = scale * x.to(wide) + shift
            spread = wanted.var(unbiased=False)
        if not spread > 0:
            return None
        weight, bias = (None if value is None else value.to(wide) for value in (pair.new.weight, pair.new.bias))
        made = group_norm(y.to(wide), pair.new.num_groups, weight, bias, pair.new.eps)
        return (made - wanted).square().mean() / spread

    def _scale_and_shift(self, pair: NormPair, x: Tensor) -> tuple[Tensor, Tensor]:
        if not pair.has_running_statistics:
            return pair.scale_and_shift(*map_moments(x).over_samples())
        if pair not in self._frozen:
            unused = torch.zeros(pair.new.num_channels, dtype=torch.float64)
            self._frozen[pair] = pair.scale_and_shift(unused, unused)
        return self._frozen[pair]
