"""`python -m benchmarks --json FILE`: gate, then times, then a table on the terminal."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from batchfree import __version__
from batchfree.torch import kernel_info
from benchmarks.allocator import keep_freed_memory
from benchmarks.cases import Case, all_cases
from benchmarks.contenders import MEASURES, contenders, copy_of
from benchmarks.gate import failures
from benchmarks.kernels import kernels
from benchmarks.summary import scaling, table
from benchmarks.timing import CALLS_PER_TURN, interleaved


def main() -> int:
    """0 where every result was right, 1 where one was wrong and nothing was timed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the rows are written")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=0.3, help="per case, measure and number of threads")
    parser.add_argument("--threads", type=int, nargs="*", help="numbers of threads; one and all where not given")
    parser.add_argument(
        "--calls-per-turn",
        type=int,
        default=CALLS_PER_TURN,
        help="of each function before the next one's turn; the first is not counted unless it is the only one",
    )
    given = parser.parse_args()
    if given.calls_per_turn < 1:
        parser.error(f"--calls-per-turn {given.calls_per_turn} was given. Allowed: 1 or more. Pass 1 for strict turns.")
    cases = [case for case in all_cases() if given.only in case.name]
    if not cases:
        parser.error(f"no case's name contains {given.only!r}. Leave --only out to see them all.")

    wrong = [message for case in cases for message in failures(case)]
    if wrong:
        print("The gate is red; nothing is timed.", *wrong, sep="\n", file=sys.stderr)
        return 1
    setting = _setting() | {"keeps_freed_memory": str(keep_freed_memory()), "calls_per_turn": str(given.calls_per_turn)}
    rows = []
    for threads in given.threads or sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        for case in cases:
            rows += [setting | row for row in _rows(case, threads, given.seconds, given.calls_per_turn)]
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    given.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(", ".join(f"{name} {value}" for name, value in setting.items()), "", table(rows), "", scaling(rows), sep="\n")
    return 0


def _rows(case: Case, threads: int, seconds: float, calls_per_turn: int) -> list[dict[str, Any]]:
    measures = {
        measure: {name: contender.measured(measure) for name, contender in contenders(case).items()}
        for measure in MEASURES
    }
    if case.groups:
        measures |= kernels(case)
    rows = []
    for measure, functions in measures.items():
        times = interleaved({**functions, "copy": copy_of(case)}, seconds, calls_per_turn)
        rows.append(
            {
                "case": case.name,
                "family": case.family,
                "shape": case.shape,
                "groups": case.groups,
                "layout": case.layout,
                "dtype": str(case.dtype).removeprefix("torch."),
                "threads": threads,
                "measure": measure,
                **{name: spread.as_row() for name, spread in times.items()},
                "torch_over_ours": times["torch"].median / times["ours"].median,
            }
        )
    return rows


def _setting() -> dict[str, str]:
    info = kernel_info()
    return {
        "batchfree": __version__,
        "torch_version": torch.__version__,  # a row's "torch" is its time
        "python": platform.python_version(),
        "compiler": info.compiler,
        "instruction_set": info.instruction_set,
        "processor": _processor(),
    }


def _processor() -> str:
    description = Path("/proc/cpuinfo")
    if description.exists():
        for line in description.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
