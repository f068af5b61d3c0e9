"""The file that initial weights are read from: whether there is one, and what it holds, by content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from batchfree.errors import StudyError

__all__ = ["check_weights_file", "weights_fingerprint"]

SUFFIXES = (".safetensors", ".npz")


def check_weights_file(weights: str) -> None:
    """Returns if `weights` is the path of a file of a kind that `load_weights` reads.

    Raises:
        StudyError: it is not.
    """
    path = Path(weights)
    if path.suffix not in SUFFIXES:
        raise StudyError(
            f"the weights {weights!r} were given. Allowed: pretrained, or the path of a file that ends in "
            f"{' or '.join(SUFFIXES)}; files of torch.save can run code and are not read. Pass one of these."
        )
    if not path.is_file():
        raise StudyError(f"the weights file {path} is not there. A readable file is needed. Check the path.")


def weights_fingerprint(weights: str | None) -> str | None:
    """SHA-256 of the file that `weights` names; `None` where it names none.

    Raises:
        StudyError: as `check_weights_file`.
    """
    if weights is None or weights == "pretrained":
        return None
    check_weights_file(weights)
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()
