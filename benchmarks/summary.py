"""The rows as a table: how many times faster than torch, by family."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.contenders import MEASURES
from benchmarks.kernels import KERNELS

__all__ = ["scaling", "table"]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: per family, layout, dtype and threads, geometric means of torch / ours, and the slowest step.

    Then the kernels alone: torch's operators / ours, and ours / a copy of the tensor.
    """
    lines = [
        "| cases | layout | dtype | threads | forward | backward | both | slowest of both | kernels | over a copy |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = list(dict.fromkeys((r["family"], r["layout"], r["dtype"], r["threads"]) for r in rows))
    for key in keys:
        mine = [r for r in rows if (r["family"], r["layout"], r["dtype"], r["threads"]) == key]
        ratios = {m: [r["torch_over_ours"] for r in mine if r["measure"] == m] for m in (*MEASURES, *KERNELS)}
        copies = [[r["ours"]["median"] / r["copy"]["median"] for r in mine if r["measure"] == m] for m in KERNELS]
        family, layout, dtype, threads = key
        lines.append(
            f"| {family} ({len(ratios['step'])}) | channels-{layout} | {dtype} | {threads} | "
            + " | ".join(_mean(ratios[m]) for m in MEASURES)
            + f" | {min(ratios['step']):.2f} | "
            + " / ".join(_mean(ratios[m]) for m in KERNELS)
            + f" | {' / '.join(map(_mean, copies))} |"
        )
    return "\n".join(lines)


def scaling(rows: list[dict[str, Any]]) -> str:
    """Per case of one group, how many times faster all threads are than one."""
    medians = {(r["case"], r["measure"], r["threads"]): r["ours"]["median"] for r in rows if r["groups"] == 1}
    most = max((threads for _, _, threads in medians), default=1)
    return "\n".join(
        f"{case}, {measure}: {most} threads against one {one / medians[case, measure, most]:.2f}"
        for (case, measure, threads), one in medians.items()
        if threads == 1 < most and (case, measure, most) in medians
    )


def _mean(values: list[float]) -> str:
    return f"{math.exp(sum(map(math.log, values)) / len(values)):.2f}" if values else "-"
