"""Which initial weights a run starts from, by content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from batchfree.errors import StudyError

__all__ = ["weights_fingerprint"]


def weights_fingerprint(weights: str | None) -> str | None:
    """SHA-256 of the file that `weights` names; `None` where it names none.

    Raises:
        StudyError: no such file.
    """
    if weights is None or weights == "pretrained":
        return None
    path = Path(weights)
    if not path.is_file():
        raise StudyError(
            f"weights {weights!r} were given, and no such file is there. A .safetensors or .npz file is needed, or "
            f'"pretrained" for the weights that the model\'s library fetches. Check the path.'
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()
