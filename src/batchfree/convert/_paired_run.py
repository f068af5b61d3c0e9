"""The original and the converted network on one batch, each waiting for the other at every norm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from batchfree.convert._batches import Forward, tensors_in
from batchfree.convert._norm_pairs import NormPair
from batchfree.convert._strand import Strand
from batchfree.errors import ArgumentError, ConversionError

__all__ = ["PairedRun", "blaming", "common_norm", "stop_at_norms"]


class _Stop(NamedTuple):
    """Where a network waits: before a norm, with what it gives to it."""

    name: str
    given: Tensor
    has_residual: bool


class PairedRun:
    """Both networks on one batch; `advance` brings both to the converted one's next norm."""

    def __init__(self, run: Forward, original: nn.Module, converted: nn.Module, batch: Any) -> None:
        self._old = Strand[_Stop](lambda: run(original, batch))
        self._new = Strand[_Stop](lambda: run(converted, batch))
        self._batch = batch
        # A norm into which the sum after it was fused waits for the other summand, whose norms come first then.
        self._passed: dict[str, _Stop] = {}
        self._maps: tuple[Tensor, Tensor] | None = None
        self._waiting: Tensor | None = None  # what the converted network is about to normalise

    def advance(self) -> str | None:
        """The norm before which both networks wait now; `None` where both are done.

        Raises:
            ArgumentError: a network cannot run on the batch.
            ConversionError: the networks do not pass the same norms.
        """
        self._maps = self._waiting = None
        new = self._step(self._new, "converted network")
        self._waiting = None if new is None else new.given
        if new is not None and new.has_residual and new.name in self._passed:
            self._maps = (self._passed.pop(new.name).given, new.given)
            return new.name
        while (old := self._step(self._old, "original")) is not None:
            if new is not None and old.name == new.name:
                self._maps = (old.given, new.given)
                return new.name
            if new is None or old.name in self._passed:
                break
            self._passed[old.name] = old
        if old is None and new is None and not self._passed:
            return None
        passed = next(iter(self._passed.values()), old)
        raise ConversionError(
            f"the networks disagree in architecture: the original {_place(passed)} where the converted one "
            f"{_place(new)}. Both must pass the same norms in the same order. Convert this original, without changes "
            f"to its forward."
        )

    def maps(self) -> tuple[Tensor, Tensor]:
        """What both networks are about to normalise; handed out once."""
        assert self._maps is not None
        maps, self._maps = self._maps, None
        return maps

    def scale(self, factors: Tensor) -> None:
        """Multiplies what the converted network is about to normalise, which nothing else reads, by `factors` (C,)."""
        assert self._waiting is not None
        x = self._waiting
        x.mul_(factors.to(x).reshape(-1, *[1] * (x.dim() - 2)))

    @property
    def outputs(self) -> tuple[Any, Any]:
        """Of the original and the converted network, once both are done."""
        return self._old.result, self._new.result

    def cancel(self) -> None:
        """Ends what is not done."""
        self._old.cancel()
        self._new.cancel()

    def _step(self, strand: Strand[_Stop], which: str) -> _Stop | None:
        if strand.is_done:
            return None
        with blaming(which, self._batch):
            return strand.advance()


@contextmanager
def blaming(which: str, batch: Any) -> Iterator[None]:
    """Whatever a network's own code raises meanwhile becomes an ArgumentError that says what it was given."""
    try:
        yield
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(batch)) or type(batch).__name__
        raise ArgumentError(
            f"the {which} cannot run on a batch of {shapes}: {type(error).__name__}: {error}. Each batch must be what "
            f"the network takes, or a tuple that begins with it. Pass other images, or say with forward= how a "
            f"network runs on a batch."
        ) from error


def common_norm(names: list[str | None]) -> str | None:
    """The norm before which the runs of all batches wait; `None` where all are done.

    Raises:
        ConversionError: they do not wait before the same one.
    """
    if len(set(names)) > 1:
        places = " and one ".join("ended" if name is None else f"came to the norm {name!r}" for name in set(names))
        raise ConversionError(
            f"the batches take different ways through the network: one {places}. All of them must pass the same norms "
            f"in the same order. Pass one batch, or batches of one kind."
        )
    return names[0]


def stop_at_norms(hooks: ExitStack, pairs: list[NormPair]) -> None:
    """Makes the networks wait before each norm while they run as a strand; `hooks` undoes it."""
    for pair in pairs:

        def stop(_norm: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], pair: NormPair = pair) -> None:
            given, *residual = tensors_in([inputs, named])
            if given.dim() > 1 and given.shape[1] == pair.new.num_channels:  # else the norm itself says what is wrong
                Strand.stop(_Stop(pair.name, given, bool(residual)))

        for norm in (pair.old, pair.new):
            hooks.callback(norm.register_forward_pre_hook(stop, with_kwargs=True).remove)


def _place(stop: _Stop | None) -> str:
    return "has come to its end" if stop is None else f"has come to the norm {stop.name!r}"
