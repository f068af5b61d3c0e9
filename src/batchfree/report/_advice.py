"""What the study of the norm batch advises, and the rule by which that follows from its differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from batchfree.records import BATCH_FREE_NORMS, Norm
from batchfree.report._arms import LOST, Arm, Arms
from batchfree.report._comparison import AGAINST_BATCH_NORM, AGAINST_ITSELF, Difference, Verdict, compare
from batchfree.report._wording import LONG_NAMES, enumerated, magnitude, percent, plural, points, signed_points

__all__ = ["ADVICE_RULE", "Advice", "Choice", "advise"]

#: The rule as the page states it, one step per line; `_choose` is the same in code.
ADVICE_RULE = (
    "Where at least one arm that lost no run is resolved better than Batch Norm: the one of them with the lowest mean "
    "difference.",
    "Else, where every Batch Norm run diverged: the arm with the lowest mean error of those that finished every seed.",
    "Else, where Batch Norm finished every seed and some arm shares at least two finished seeds with it: Batch Norm.",
    "Else no advice at that norm batch.",
)


@dataclass(frozen=True)
class Choice:
    """What the rule gives at one norm batch; `norm` is `None` where it gives no advice."""

    norm_batch: int
    norm: Norm | None
    reason: Literal["resolved better", "Batch Norm diverged", "none resolved better", "too little finished"]
    difference: float | None = None  # mean difference from Batch Norm in points, where that is the reason
    passed_over: tuple[Norm, ...] = ()  # resolved better, but with runs that diverged or failed


@dataclass(frozen=True)
class Advice:
    """One choice per norm batch of Batch Norm, largest first, and the sentences that say them."""

    choices: tuple[Choice, ...]
    sentences: tuple[str, ...]


def advise(arms: Arms) -> Advice:
    """What the study says, by `ADVICE_RULE`: what Batch Norm does, then which arm to use where.

    A third sentence, where runs were also evaluated with statistics recomputed, says what that changes.

    Args:
        arms: differ in norm and norm batch only.
    """
    differences = compare(arms, AGAINST_BATCH_NORM)
    choices = tuple(_choose(batch_norm, differences) for batch_norm in arms.batch_norm.values())
    sentences = (_batch_norm_sentence(arms), _choice_sentence(arms, choices), _recomputed_sentence(differences))
    return Advice(choices, tuple(filter(None, sentences)))


def _choose(batch_norm: Arm, differences: Sequence[Difference]) -> Choice:
    norm_batch = batch_norm.norm_batch or 0
    rows = [d for d in differences if d.reference is batch_norm and d.arm.norm in BATCH_FREE_NORMS]
    better = [row for row in rows if row.verdict == "better"]
    # An arm that lost its hard seeds would win by their absence.
    passed_over = tuple(row.arm.norm for row in better if row.arm.seeds(*LOST))
    safe = [row for row in better if row.arm.norm not in passed_over]
    if safe:
        best = min(safe, key=lambda difference: difference.mean or 0.0)
        return Choice(norm_batch, best.arm.norm, "resolved better", best.mean, passed_over)
    if len(batch_norm.seeds("diverged")) == len(batch_norm.cells):
        finisher = _lowest(row.arm for row in rows if len(row.arm.errors) == len(row.arm.cells))
        if finisher is not None:
            return Choice(norm_batch, finisher.norm, "Batch Norm diverged")
    has_pairs = any(len(row.seeds) >= 2 for row in rows)
    if has_pairs and len(batch_norm.errors) == len(batch_norm.cells):
        return Choice(norm_batch, "bn", "none resolved better", None, passed_over)
    return Choice(norm_batch, None, "too little finished", None, passed_over)


def _lowest(arms: Iterable[Arm]) -> Arm | None:
    measured = [(arm.mean_error, arm) for arm in arms if arm.mean_error is not None]
    return min(measured, key=lambda pair: pair[0])[1] if measured else None


def _batch_norm_sentence(arms: Arms) -> str:
    if not arms.batch_norm:
        return "This study has no Batch Norm runs, so it cannot say what a small norm batch costs."
    largest = next(iter(arms.batch_norm))
    changes = [change for change in compare(arms, AGAINST_ITSELF) if not change.arm.is_recomputed]
    if not changes:
        start = f"Batch Norm ran at norm batch {largest} only, so this study cannot say what a smaller one costs"
    elif all(change.verdict == "too few seeds" for change in changes):
        start = _unresolvable_change(arms)
    else:
        start = _change(changes, largest, _tied(arms))
    lost = _lost_runs(arms.batch_norm.values())
    return f"{start}; {lost}." if lost else f"{start}."


def _unresolvable_change(arms: Arms) -> str:
    measured = [(arm.mean_error, norm_batch) for norm_batch, arm in arms.batch_norm.items() if arm.errors]
    if not measured:
        return "No Batch Norm run has finished, so this study cannot say yet what a small norm batch costs"
    means = enumerated([f"{percent(mean)} at {norm_batch}" for mean, norm_batch in measured])
    return (
        f"Batch Norm's error by norm batch is {means}, but with fewer than two "
        "finished seeds to pair it cannot be told whether the norm batch changes it"
    )


def _tied(arms: Arms) -> str:
    names = [axis.replace("_", " ").replace("sgd", "SGD") for axis in arms.tied]
    verb = "changes" if len(names) == 1 else "change"
    return f" ({enumerated(names)} {verb} with it)" if names else ""


def _change(changes: Sequence[Difference], largest: int, tied: str) -> str:
    def at(verdict: Verdict) -> list[Difference]:
        return [change for change in changes if change.verdict == verdict]

    worse, better = at("worse"), at("better")
    unresolved, untested = at("not resolved"), at("too few seeds")
    parts = [_amount(change, is_first=change is (worse + better)[0]) for change in worse + better]
    if unresolved and parts:
        parts.append(f"not resolved from it at {_norm_batches(unresolved)}")
    skipped = f"; too few seeds finished to compare at {_norm_batches(untested)}" if untested else ""
    if not parts:
        sizes = enumerated([f"{signed_points(change.mean)} points at {change.arm.norm_batch}" for change in unresolved])
        text = f"No change of Batch Norm's error from norm batch {largest} to a smaller one{tied} is resolved"
        return f"{text} (mean change {sizes}){skipped}"
    # A trend is claimed only where it holds at the small end and nothing speaks against it.
    if changes[-1].verdict == "worse" and not better:
        start = f"Batch Norm loses accuracy as the norm batch shrinks{tied}: compared with norm batch {largest}, its"
    else:
        start = f"Compared with norm batch {largest}{tied}, Batch Norm's"
    return f"{start} error is {enumerated(parts)}{skipped}"


def _norm_batches(changes: Sequence[Difference]) -> str:
    return enumerated([change.arm.norm_batch for change in changes])


def _amount(change: Difference, is_first: bool) -> str:
    # Resolved, so both ends have the sign of the mean: their sizes, smaller first, are the interval.
    near, far = (magnitude(end) for end in sorted(change.interval or (), key=abs))
    word = "higher" if change.verdict == "worse" else "lower"
    label = "95\u00a0% interval " if is_first else ""
    return f"{points(change.mean)} {word} at {change.arm.norm_batch} ({label}{near} to {far})"


def _lost_runs(arms: Iterable[Arm]) -> str:
    """Runs without a number must not vanish from a sentence about means."""
    lost = []
    for arm in arms:
        where = "" if arm.norm_batch is None else f" at norm batch {arm.norm_batch}"
        for state in LOST:
            if seeds := arm.seeds(state):
                lost.append(f"{len(seeds)} of its {plural(len(arm.cells), 'run')}{where} {state}")
    return enumerated(lost) if lost else ""


def _choice_sentence(arms: Arms, choices: Sequence[Choice]) -> str:
    if not any(arm.norm in BATCH_FREE_NORMS for arm in arms.all):
        return "No batch-free norm is in this study, so there is nothing to use instead."
    best = _lowest(arm for arm in arms.all if arm.norm in BATCH_FREE_NORMS)
    if not choices:
        return _without_batch_norm(best)
    kept = [choice.norm_batch for choice in choices if choice.norm == "bn"]
    unknown = [choice.norm_batch for choice in choices if choice.norm is None]
    # The table may show an arm that is resolved better and lost runs: "no arm" alone would contradict it.
    has_passed_over = any(choice.passed_over for choice in choices if choice.norm == "bn")
    none = "no arm that lost no run" if has_passed_over else "no arm"
    clauses = _uses(choices)
    if not clauses and not kept:
        return "There are too few finished runs to compare any arm with Batch Norm: run at least two seeds of each."
    if not clauses:
        where = f"at norm batch {enumerated(kept)}"
        clauses = [f"{none} is resolved better than Batch Norm {where}: nothing here argues against it there"]
    elif kept:
        clauses.append(f"at {enumerated(kept)} nothing argues against Batch Norm: {none} is resolved better")
    if unknown:
        clauses.append(f"at {enumerated(unknown)} too few runs finished to say")
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def _uses(choices: Sequence[Choice]) -> list[str]:
    clauses = []
    for norm in BATCH_FREE_NORMS:
        chosen = [choice for choice in choices if choice.norm == norm]
        resolved = [choice for choice in chosen if choice.reason == "resolved better"]
        diverged = [choice.norm_batch for choice in chosen if choice.reason == "Batch Norm diverged"]
        if resolved:
            where = enumerated([choice.norm_batch for choice in resolved])
            gains = enumerated([magnitude(choice.difference) for choice in resolved])
            lower = f"where its error is resolved lower than Batch Norm's, by {gains} points"
            clauses.append(f"use {LONG_NAMES[norm]} at norm batch {where}, {lower}")
        if diverged:
            where = f"norm batch {enumerated(diverged)}, where every Batch Norm run diverged"
            clauses.append(f"use {LONG_NAMES[norm]} at {where}")
    return clauses


def _without_batch_norm(best: Arm | None) -> str:
    if best is None or best.mean_error is None:
        return "No run has finished yet, so there is nothing to advise."
    where = "" if best.norm_batch is None else f" at norm batch {best.norm_batch}"
    measured = f"{percent(best.mean_error)}, {plural(len(best.errors), 'seed')}"
    return (
        f"The lowest mean error is that of {LONG_NAMES[best.norm]}{where} ({measured}), "
        "but without Batch Norm there is nothing to test it against."
    )


def _recomputed_sentence(differences: Sequence[Difference]) -> str:
    """What of Batch Norm's error is evaluation; empty where nothing was evaluated twice."""
    rows = [row for row in differences if row.arm.is_recomputed and row.arm.norm == "bn"]
    if not rows:
        return ""
    start = "With Batch Norm's running statistics computed anew from training images after training"
    resolved = [row for row in rows if row.verdict in ("better", "worse")]
    if not resolved:
        return f"{start}, no change of its error is resolved."
    amounts = enumerated(
        [
            f"{points(row.mean)} {'lower' if row.verdict == 'better' else 'higher'} at norm batch {row.arm.norm_batch}"
            for row in resolved
        ]
    )
    is_gain = all(row.verdict == "better" for row in resolved)
    return (
        f"{start}, its error is resolved {amounts}{': so much of it is evaluation, not training' if is_gain else ''}."
    )
