"""What changed between two `results.json`, and whether it means anything: `python -m bench compare A B`."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.harness.report import Table, build_console, table_of
from bench.harness.results import Results, read_results
from bench.harness.samples import median_rate, unpaired_ratio
from serve.contract.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What changed between two results, and whether it means anything."""

    before: Path
    after: Path


def run(options: CompareOptions, command: str) -> None:
    """Print the comparison.

    Raises:
        InputError: a file cannot be read, or their work was different.
    """
    before, after = read_results(options.before), read_results(options.after)
    console = build_console()
    for table in compare(before, after):
        table.print(console)
    for doubt in doubts(before, after):
        console.print(f"note: {doubt}", style="yellow", highlight=False, markup=False)


def compare(before: Results, after: Results) -> list[Table]:
    """Return what changed: speeds with intervals, then the other facts.

    Raises:
        InputError: the work was different, or no measurement is in both.
    """
    if before.benchmark != after.benchmark:
        raise InputError(
            f"compare: {before.benchmark} against {after.benchmark}; name two results of the same benchmark"
        )
    if differences := list(_differences(before.work, after.work, "{} ({} and {})")):
        raise InputError(
            f"compare: different work: {', '.join(differences)}; run one of them again with the same options"
        )
    speeds = list(_speeds(before, after))
    if not speeds:
        raise InputError("compare: no contender was measured in both; run both with the same --contenders")
    tables = [table_of(f"{before.machine.commit[:12] or 'before'} -> {after.machine.commit[:12] or 'after'}", speeds)]
    if facts := list(_facts(before, after)):
        tables.append(table_of("Other figures that changed", facts))
    old, new = ({(m.contender, m.case) for m in results.measurements} for results in (before, after))
    alone = [(*key, "before only") for key in sorted(old - new)] + [(*key, "after only") for key in sorted(new - old)]
    if unmatched := [{"contender, case": f"{name}, {case}", "in": where} for name, case, where in alone]:
        tables.append(table_of("Measured in only one of the two", unmatched))
    return tables


def doubts(before: Results, after: Results) -> list[str]:
    """Return what may have changed the figures besides the code."""
    found = []
    for name in ("processor", "cores", "num_threads", "gpu"):
        old, new = getattr(before.machine, name), getattr(after.machine, name)
        if old != new:
            found.append(f"not the same machine: {name} was {old}, and is {new}")
    if versions := list(_differences(before.machine.versions, after.machine.versions, "{} {} -> {}")):
        found.append(f"not the same versions: {', '.join(versions)}")
    found += [f"before: {warning}" for warning in before.warnings]
    found += [f"after: {warning}" for warning in after.warnings]
    return found


def _differences(before: Mapping[str, object], after: Mapping[str, object], form: str) -> Iterator[str]:
    """Yield each key with its two values where they differ."""
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            yield form.format(key, before.get(key, "absent"), after.get(key, "absent"))


def _speeds(before: Results, after: Results) -> Iterator[dict[str, str]]:
    for case in before.cases:
        old, new = before.of_case(case), after.of_case(case)
        for name in old:
            if name in new and "offered_per_s" not in old[name].facts:  # each was offered a rate of its own
                ratio = unpaired_ratio(new[name].samples, old[name].samples)
                yield {
                    "contender, case": f"{name}, {case}",
                    "before": f"{median_rate(old[name].samples):,.1f} {old[name].unit}/s",
                    "after": f"{median_rate(new[name].samples):,.1f} {new[name].unit}/s",
                    "after / before": str(ratio),
                    "verdict": "no change" if ratio.verdict == "alike" else ratio.verdict,
                }


def _facts(before: Results, after: Results) -> Iterator[dict[str, str]]:
    after_facts = {contender.name: contender.facts for contender in after.contenders}
    for contender in before.contenders:
        new = after_facts.get(contender.name, {})
        for fact, value in contender.facts.items():
            if fact in new and new[fact] != value:
                yield {
                    "contender, figure": f"{contender.name}, {fact.replace('_', ' ')}",
                    "before": f"{value:,.4g}",
                    "after": f"{new[fact]:,.4g}",
                }
