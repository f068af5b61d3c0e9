"""The commands. Each imports what it needs when it runs, so that `batchfree report` starts without torch."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from batchfree import BatchfreeError, __version__
from batchfree.cli._cell import cell
from batchfree.cli._convert import convert, inspect
from batchfree.cli._exit import REFUSED
from batchfree.cli._info import info
from batchfree.cli._report import export, report
from batchfree.cli._study import study_app

__all__ = ["app", "run"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # a crash's last line is its reason, whole
    help="Vision networks that do not depend on the batch: conversion of trained ones, studies and their reports.",
)
app.add_typer(study_app, name="study")
app.command()(report)
app.command()(export)
app.command()(cell)
app.command()(inspect)
app.command()(convert)
app.command()(info)


def run() -> None:
    """The entry point: what batchfree refuses on purpose is one message and exit status 2, not a traceback."""
    try:
        app()
    except BatchfreeError as error:
        Console(stderr=True).print(f"Error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(REFUSED)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"batchfree {__version__}")
        raise typer.Exit
