"""An optimiser that follows its network through the conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from batchfree.errors import ArgumentError

__all__ = ["check_optimizer", "move_optimizer"]


def check_optimizer(optimizer: object, model: nn.Module) -> None:
    """Refuses what is no optimiser of `model`.

    Raises:
        ArgumentError: it is no torch optimiser, or holds a Parameter that the model has not.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentError(
            f"optimizer is a {type(optimizer).__name__}. It must be a torch.optim.Optimizer. "
            f"Pass the optimiser itself, not a wrapper or its state."
        )
    own = {id(parameter) for parameter in model.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strange = sum(id(parameter) not in own for parameter in held)
    if strange:
        raise ArgumentError(
            f"{strange} of the {len(held)} Parameters in optimizer are not Parameters of this "
            f"{type(model).__name__}. It must be built on the model that is converted. "
            f"Pass the optimiser of this model, or build a new one on the result."
        )


def move_optimizer(
    optimizer: torch.optim.Optimizer,
    successors: Mapping[int, nn.Parameter],
    kept: set[int],
    additions: Mapping[int, Sequence[tuple[str, nn.Parameter]]],
) -> None:
    """Puts the copy's Parameters in the place of the original's, in the same groups and order.

    Args:
        successors: the Parameter that takes the place of an old one, by the id of the old one.
        kept: ids of old ones whose successor holds the same numbers, so that momentum still belongs to it.
        additions: new Parameters, with their last names, that join the end of the group of a `weight`, by its old id.
    """
    for group in optimizer.param_groups:
        old = list(group["params"])
        new = [successors[id(parameter)] for parameter in old]
        joining = [added for parameter in old for added in additions.get(id(parameter), ())]
        if "param_names" in group:  # built on model.named_parameters()
            stems = zip(old, list(group["param_names"]), strict=True)
            group["param_names"] += [
                name.removesuffix("weight") + last
                for parameter, name in stems
                for last, _ in additions.get(id(parameter), ())
            ]
        for before, after in zip(old, new, strict=True):
            state = optimizer.state.pop(before, None)
            if state is not None and id(before) in kept:
                optimizer.state[after] = state
        group["params"][:] = [*new, *(parameter for _, parameter in joining)]  # LBFGS holds the list itself
