"""`batchfree inspect` and `batchfree convert`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from batchfree.errors import ArgumentError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["convert", "inspect"]

Model = Annotated[str, typer.Argument(help="torchvision:NAME, timm:NAME or path/to/file.py:function.")]
Weights = Annotated[Path, typer.Option(help="A safetensors file, or a checkpoint with nothing but tensors.")]
Classes = Annotated[int | None, typer.Option(help="Of the classifier. [default: the library's]")]
TARGETS = {"gn": ("gn", False), "ln": ("ln", False), "gn+ws": ("gn", True)}
CALIBRATION_IMAGES, RECOVERY_IMAGES = 64, 512


def inspect(
    model: Model,
    input: Annotated[str | None, typer.Option(help="Channels and sides of one input, as 3x224x224.")] = None,
    to: Annotated[str, typer.Option(help="gn, ln or gn+ws.")] = "gn",
    classes: Classes = None,
) -> None:
    """Print what a conversion will do to each norm of a network, and why it will not do it to others."""
    import torch

    from batchfree.cli._network import build_network
    from batchfree.convert import plan_conversion

    norm, ws = _target(to)
    example = None if input is None else torch.zeros(1, *_sizes(input))
    print(plan_conversion(build_network(model, classes), example, norm=norm, ws=ws))


def convert(
    model: Model,
    weights: Weights,
    images: Annotated[Path, typer.Option(help="A folder of images, in any subfolders; no labels.")],
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    to: Annotated[str, typer.Option(help="gn, ln or gn+ws.")] = "gn",
    recover: Annotated[int, typer.Option(help="Steps of distillation after calibration.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the images, in pixels.")] = 224,
    mean: Annotated[str | None, typer.Option(help="Per channel, by commas. [default: the weights' own]")] = None,
    std: Annotated[str | None, typer.Option(help="Per channel, by commas. [default: the weights' own]")] = None,
    classes: Classes = None,
) -> None:
    """Convert a trained network, calibrate it on some images, and write it with what is needed to build it again."""
    from batchfree.cli._image_batch import evenly, read_image_batch, standard_of
    from batchfree.cli._network import build_network, load_weights
    from batchfree.convert import calibrate
    from batchfree.convert import convert as convert_network
    from batchfree.convert import recover as recover_network

    norm, ws = _target(to)
    _check_numbers(recover, size)
    _check_output(out)
    network = build_network(model, classes)
    standard = standard_of(model, mean, std)
    load_weights(network, weights)
    with _progress() as task:
        batch = read_image_batch(
            images, RECOVERY_IMAGES if recover else CALIBRATION_IMAGES, size, standard, task("read")
        )
        converted = convert_network(network, norm, ws=ws, example_inputs=batch[:1])
        report = calibrate(
            converted,
            network,
            batch[evenly(len(batch), CALIBRATION_IMAGES)],
            groups="auto" if norm == "gn" else "keep",
            eps="auto",
            filters="auto",
            on_progress=task("fit"),
        )
        recovered = (
            recover_network(converted, network, batch, recover, on_progress=task("recover")) if recover else None
        )
    options = {
        "model": model,
        "classes": classes,
        "to": to,
        "ws": ws,
        "groups": dict(report.groups),
        "eps": dict(report.eps),
    }
    prepared = {"input": list(batch.shape[1:]), "mean": list(standard[0]), "std": list(standard[1])}
    _write(out, converted, {**options, **prepared, "recovery_steps": recover})
    sides = "x".join(map(str, batch.shape[1:]))
    print(f"{len(batch)} images, {sides}, standardised with --mean {_listed(standard[0])} --std {_listed(standard[1])}")
    print(report)
    if recovered is not None:
        print(recovered)
    print(f"Written: {out}")


def _listed(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _target(to: str) -> tuple[Any, bool]:
    if to not in TARGETS:
        raise ArgumentError(unknown_name("target", to, TARGETS))
    return TARGETS[to]


def _sizes(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise ArgumentError(
            f"--input {text} was given. It is channels and sides of one input. Pass for instance 3x224x224."
        )
    return [int(word) for word in text.split("x")]


def _check_numbers(recover: int, size: int) -> None:
    if recover < 0 or size < 1:
        raise ArgumentError(
            f"--recover {recover} and --size {size} were given. Steps are 0 or more, a side at least 1. Pass such."
        )


def _check_output(out: Path) -> None:
    if out.suffix != ".safetensors" or not out.parent.is_dir() or out.is_dir():
        raise ArgumentError(
            f"--out {out} was given. It is a file that ends in .safetensors, in a folder that is there. Pass another."
        )


def _write(out: Path, network: nn.Module, options: dict[str, Any]) -> None:
    from safetensors.torch import save

    from batchfree.records import write_atomically

    # tied entries share memory, which the format refuses; loading ties them again
    state: dict[str, Tensor] = {key: value.detach().contiguous().clone() for key, value in network.state_dict().items()}
    try:
        write_atomically(out, save(state, {"format": "pt", "batchfree": json.dumps(options)}))
    except OSError as error:
        raise ArgumentError(
            f"{out} cannot be written: {error}. It needs room on the disk and a folder that may be written to. "
            f"Pass another --out."
        ) from error


@contextmanager
def _progress() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Gives, for the name of a task, what is to be called with how much of it is done: a bar, in a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def begin(name: str) -> Callable[[int, int], None]:
            task = bar.add_task(name, total=None)

            def show(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)
                if not console.is_terminal and done == total:
                    print(f"{name} {done}/{total}", file=sys.stderr, flush=True)

            return show

        yield begin
