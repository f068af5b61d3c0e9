"""`batchfree report` and `batchfree export`: what is made from a study's files; torch is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export", "report"]


def report(
    outs: Annotated[list[Path], typer.Argument(help="The --out folders of one or more studies.", metavar="DIR...")],
    to: Annotated[Path | None, typer.Option(help="Where the report of several studies goes.")] = None,
) -> None:
    """Build the report of one or more studies again, from their files alone; torch is not needed."""
    from batchfree.report import build_report

    print(f"Report: {build_report(*outs, to=to)}")


def export(
    out: Annotated[Path, typer.Argument(help="The --out folder of a study.", metavar="DIR")],
    to: Annotated[str, typer.Option(help="csv, parquet, tensorboard or mlflow.")],
    destination: Annotated[Path | None, typer.Option(help="[default: beside the study's files]")] = None,
) -> None:
    """Write a study's runs and epochs for another tool."""
    from batchfree.export import export as write

    print(f"Written: {write(out, to, destination)}")
