"""`python -m batchfree`, and the `batchfree` command."""

from __future__ import annotations

import sys

from batchfree.errors import MissingExtraError, require


def main() -> None:
    """Runs the command line; without its libraries, says which command installs them."""
    try:
        require("typer", "study")
        require("rich", "study")
        require("pydantic", "study")
    except MissingExtraError as error:
        sys.exit(f"batchfree: {error}")
    from batchfree.cli import run

    run()


if __name__ == "__main__":
    main()
