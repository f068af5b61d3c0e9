"""The processes that share one cell: rank, mean and agreement; a single process is the case of one."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Workers"]


class Workers:
    """This process among `count` that share each SGD batch; every method is called by all of them together."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.rank = 0

    def share(self, chosen: Tensor) -> Tensor:
        """This worker's part of the images of one step."""
        per_worker = len(chosen) // self.count
        return chosen[self.rank * per_worker : (self.rank + 1) * per_worker]

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network whose backward pass averages gradients over all workers."""
        return network

    def mean(self, value: float) -> float:
        """The mean of every worker's `value`."""
        return value

    def any(self, fact: bool) -> bool:
        """Whether `fact` holds for some worker."""
        return fact
