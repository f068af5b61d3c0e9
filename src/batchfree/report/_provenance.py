"""How the study was run, as term and description: what somebody needs to judge it or to run it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from batchfree.records import CellConfig, CellRecord, StudyRecord

__all__ = ["environments", "provenance"]


def provenance(study: StudyRecord, cells: Sequence[CellRecord]) -> list[tuple[str, str]]:
    """Terms and what they were in this study; a term whose value differs between runs says where it had which."""
    configs = study.cells

    def values(read: Callable[[CellConfig], object]) -> str:
        return _by_norm_batch(configs, read)

    seconds = sum(cell.cost.seconds for cell in cells if cell.cost is not None)
    return [
        ("Model", values(lambda c: c.model)),
        ("Data", values(lambda c: f"{c.data} (SHA-256 {c.data_fingerprint[:12]}...)")),
        ("Training images", values(lambda c: f"{c.train_images:,}")),
        ("Image side", values(lambda c: "as the data has it" if c.image_size is None else f"{c.image_size} pixels")),
        ("Epochs", values(lambda c: c.epochs)),
        ("Protocol", values(lambda c: _PROTOCOLS[c.protocol])),
        ("SGD batch", values(lambda c: c.sgd_batch)),
        ("Learning rate", values(lambda c: f"{c.learning_rate:g}, {c.schedule} schedule")),
        ("Momentum and weight decay", values(lambda c: f"{c.momentum:g} and {c.weight_decay:g}")),
        ("Groups asked for", values(lambda c: c.groups)),
        ("Seeds", ", ".join(map(str, sorted({c.seed for c in configs})))),
        ("Threads per run", values(lambda c: c.threads)),
        ("Time of all runs together", f"{seconds:,.0f} s"),
    ]


def environments(cells: Sequence[CellRecord]) -> list[tuple[str, int]]:
    """Every environment that runs were made in, with how many; more than one is worth knowing before comparing."""
    return Counter(
        f"Python {e.python}, torch {e.torch}, NumPy {e.numpy}, batchfree {e.batchfree}; {e.platform}; "
        f"{e.processor} ({e.cpu_capability})"
        for cell in cells
        if (e := cell.environment) is not None
    ).most_common()


_PROTOCOLS = {
    "fixed-sgd": "fixed-sgd: SGD batch and learning rate stay the same while the norm batch changes",
    "paper": "paper: SGD batch 8N and learning rate 0.1 * N / 32 follow the norm batch N, as Wu & He did",
}


def _by_norm_batch(configs: Sequence[CellConfig], read: Callable[[CellConfig], object]) -> str:
    """The one value that all runs share, or each value with the norm batches it belongs to."""
    found: dict[str, list[str]] = {}
    for config in configs:
        where = "any" if config.norm_batch is None else str(config.norm_batch)
        norm_batches = found.setdefault(str(read(config)), [])
        if where not in norm_batches:
            norm_batches.append(where)
    if len(found) <= 1:
        return next(iter(found), "")
    return "; ".join(f"{value} at norm batch {', '.join(where)}" for value, where in found.items())
