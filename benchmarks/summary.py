"""The rows as a table: how many times faster than torch, by family."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.contenders import MEASURES

__all__ = ["table"]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: per family, layout, dtype and threads, the geometric mean of torch / ours, and the worst case."""
    lines = [
        "| cases | layout | dtype | threads | forward | backward | both | slowest of both | forward over copy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keys = list(dict.fromkeys((r["family"], r["layout"], r["dtype"], r["threads"]) for r in rows))
    for key in keys:
        mine = [r for r in rows if (r["family"], r["layout"], r["dtype"], r["threads"]) == key]
        ratios = {m: [r["torch_over_ours"] for r in mine if r["measure"] == m] for m in MEASURES}
        copies = _mean(r["ours"]["median"] / r["copy"]["median"] for r in mine if r["measure"] == "forward")
        family, layout, dtype, threads = key
        lines.append(
            f"| {family} ({len(ratios['step'])}) | channels-{layout} | {dtype} | {threads} | "
            + " | ".join(f"{_mean(ratios[m]):.2f}" for m in MEASURES)
            + f" | {min(ratios['step']):.2f} | {copies:.2f} |"
        )
    return "\n".join(lines)


def _mean(values: Iterable[float]) -> float:
    product, count = 1.0, 0
    for value in values:
        product, count = product * value, count + 1
    return float(product ** (1 / count))
