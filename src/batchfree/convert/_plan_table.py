"""A plan as plain text of at most 120 columns."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchfree.convert._plan import ConversionPlan, PlanRow

__all__ = ["plan_table"]

WIDTH = 120
#: The two columns of dotted names share what the others leave.
_NAME_COLUMNS = (0, 6)


def plan_table(plan: ConversionPlan) -> str:
    """The table, then everything that does not fit into its cells."""
    convertible = sum(not row.reasons for row in plan.rows)
    target = plan.norm + {False: "", True: "+ws", "strict": "+ws (strict)"}[plan.ws]
    lines = [f"{plan.model} to {target}: {convertible} of {len(plan.rows)} norms can be converted."]
    if plan.rows:
        lines += ["", *_table(plan.rows, _columns(plan)), ""]
    lines += _section("Refused", plan.reasons)
    lines += _section("Groups", [f"{why}: {count} norms" for why, count in Counter(_whys(plan.rows)).items()])
    kept = Counter(", ".join(row.keeps) or "no weight and bias" for row in plan.rows if not row.reasons)
    lines += _section("Kept", [f"{what}: {count} norms" for what, count in kept.items()])
    lines += _section("Stay plain", dict.fromkeys(line for row in plan.rows for line in row.stays_plain))
    unfused = Counter(row.not_fused for row in plan.rows if row.not_fused)
    lines += _section("Not fused", [f"{why}: {count} norms" for why, count in unfused.items()])
    shared = [row for row in plan.rows if len(row.names) > 1]
    lines += _section("Shared", [f"{row.names[0]} is also {', '.join(row.names[1:])}" for row in shared])
    lines += _section("Not known", plan.unknown)
    return "\n".join(lines).rstrip()


def _columns(plan: ConversionPlan) -> dict[str, Callable[[PlanRow], str]]:
    columns: dict[str, Callable[[PlanRow], str]] = {
        "norm": lambda row: row.names[0] + (f" (+{len(row.names) - 1})" if len(row.names) > 1 else ""),
        "kind": lambda row: row.kind,
        "channels": lambda row: _shown(row.channels),
        "map": lambda row: "?" if row.spatial is None else "x".join(map(str, row.spatial)) or "-",
        "groups": lambda row: "refused" if row.reasons else _shown(row.num_groups),
        "values": lambda row: _shown(row.values_per_group),
        "reads": lambda row: (
            ", ".join(f"{name} (ws)" if name in row.standardizes else name for name in row.convolutions) or "-"
        ),
        "can fuse": lambda row: row.fuses or "-",
    }
    return columns


def _whys(rows: tuple[PlanRow, ...]) -> list[str]:
    return [row.groups_reason for row in rows if not row.reasons]


def _shown(number: int | None) -> str:
    return "?" if number is None else str(number)


def _table(rows: tuple[PlanRow, ...], columns: dict[str, Callable[[PlanRow], str]]) -> list[str]:
    cells = [list(columns), *([show(row) or "(itself)" for show in columns.values()] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    widths[1] = min(widths[1], 18)
    left = WIDTH - (len(widths) - 1) * 2 - sum(w for i, w in enumerate(widths) if i not in _NAME_COLUMNS)
    first, second = _NAME_COLUMNS
    if widths[first] + widths[second] > left:
        widths[first] = max(left // 2, left - widths[second])
        widths[second] = left - widths[first]
    return [
        "  ".join(_elided(cell, width).ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _elided(text: str, width: int) -> str:
    """The end of a dotted name tells layers apart; its beginning is where they are."""
    if len(text) <= width:
        return text
    head = (width - 2) // 3
    return f"{text[:head]}..{text[head + 2 - width :]}"


def _section(title: str, lines: object) -> list[str]:
    found = [str(line) for line in lines]  # type: ignore[attr-defined]
    if not found:
        return []
    wrapped = [
        part for line in found for part in textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="    ")
    ]
    return [f"{title}:", *wrapped]
