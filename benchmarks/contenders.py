"""What is timed: ours, torch's eager operators and a plain copy, all on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from batchfree.torch import group_norm, standardize_weight
from benchmarks.cases import Case

__all__ = ["MEASURES", "Contender", "contenders", "copy_of"]

#: forward: without gradients. backward: of a graph made before. step: both, as training has them.
MEASURES = ("forward", "backward", "step")


@dataclass(frozen=True)
class Contender:
    """A function of leaves, and the gradient that flows into its result."""

    run: Callable[..., Tensor]
    leaves: tuple[Tensor, ...]
    upstream: Tensor

    def gradients(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.run(*self.leaves), self.leaves, self.upstream)

    def measured(self, measure: str) -> Callable[[], object]:
        """A function without arguments that does the measured work once."""
        if measure == "step":
            return self.gradients
        if measure == "backward":
            output = self.run(*self.leaves)
            return lambda: torch.autograd.grad(output, self.leaves, self.upstream, retain_graph=True)

        def forward() -> Tensor:
            with torch.no_grad():
                return self.run(*self.leaves)

        return forward

    def doubled(self) -> Contender:
        """The same in float64 and channels-first, where torch's operators are exact."""
        leaves = tuple(leaf.detach().double().contiguous().requires_grad_() for leaf in self.leaves)
        return Contender(self.run, leaves, self.upstream.double().contiguous())


def contenders(case: Case) -> dict[str, Contender]:
    """Ours and torch's, on tensors of their own values but the same memory format."""
    x, upstream = case.tensor(0).requires_grad_(), case.tensor(1)
    if case.groups == 0:

        def official(weight: Tensor) -> Tensor:  # as timm and most code bases have it
            out = weight.shape[0]
            return F.batch_norm(weight.reshape(1, out, -1), None, None, training=True, eps=1e-10).reshape_as(weight)

        return {"ours": Contender(standardize_weight, (x,), upstream), "torch": Contender(official, (x,), upstream)}
    channels = case.shape[1]
    generator = torch.Generator().manual_seed(2)
    weight, bias = (torch.randn(channels, generator=generator).requires_grad_() for _ in range(2))

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm(x, case.groups, weight, bias, activation="relu")

    def torchs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.relu(F.group_norm(x, case.groups, weight, bias), inplace=True)

    return {name: Contender(run, (x, weight, bias), upstream) for name, run in (("ours", ours), ("torch", torchs))}


def copy_of(case: Case) -> Callable[[], object]:
    """One read and one write of the tensor, into memory that is already there."""
    source = case.tensor(0)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
