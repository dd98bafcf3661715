"""What moved between two `results.json`, and whether that means anything: `python -m bench compare A B`."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from bench.harness.report import Table, build_console
from bench.harness.results import Results, read_results
from bench.harness.samples import median_rate, unpaired_ratio
from serve.contract.errors import InputError

VERDICTS = {
    "faster": "faster",
    "slower": "slower",
    "alike": "no change",
    "too noisy to tell": "too noisy to tell",
    "too few rounds to tell": "too few rounds to tell",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What moved between two results, and whether that means anything."""

    before: Path
    """results.json, or its folder."""
    after: Path
    """results.json, or its folder."""


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


def require_same_work(before: Results, after: Results) -> None:
    """Refuse results of different work: their ratio would mean nothing.

    Raises:
        InputError: names everything that differs.
    """
    if before.benchmark != after.benchmark:
        raise InputError(
            f"compare: {before.benchmark} against {after.benchmark}; give two results of the same benchmark"
        )
    keys = dict.fromkeys([*before.work, *after.work])
    differences = [
        f"{key} ({before.work.get(key, 'absent')} and {after.work.get(key, 'absent')})"
        for key in keys
        if before.work.get(key) != after.work.get(key)
    ]
    if differences:
        raise InputError(
            f"compare: different work: {', '.join(differences)}; run one of them again with the same options"
        )


def doubts(before: Results, after: Results) -> list[str]:
    """Return what besides the code may have moved the figures."""
    found = []
    for name in ("processor", "cores", "num_threads", "gpu"):
        old, new = getattr(before.machine, name), getattr(after.machine, name)
        if old != new:
            found.append(f"not the same machine: {name} was {old}, and is {new}")
    versions = [
        f"{package} {before.machine.versions.get(package, 'absent')} -> {after.machine.versions.get(package, 'absent')}"
        for package in dict.fromkeys([*before.machine.versions, *after.machine.versions])
        if before.machine.versions.get(package) != after.machine.versions.get(package)
    ]
    if versions:
        found.append(f"not the same versions: {', '.join(versions)}")
    found += [f"before: {warning}" for warning in before.warnings]
    found += [f"after: {warning}" for warning in after.warnings]
    return found


def compare(before: Results, after: Results) -> list[Table]:
    """Return what moved: speeds with intervals, then the other facts.

    Raises:
        InputError: the work was different, or no measurement is in both.
    """
    require_same_work(before, after)
    speeds = tuple(_speeds(before, after))
    if not speeds:
        raise InputError("compare: no contender was measured in both; run both with the same --contenders")
    title = f"{before.machine.commit[:12] or 'before'} -> {after.machine.commit[:12] or 'after'}"
    tables = [
        Table(title, ("contender, case", "before", "after", "after / before", "so it is"), speeds),
    ]
    if facts := tuple(_facts(before, after)):
        tables.append(Table("Other figures that changed", ("contender, figure", "before", "after"), facts))
    if lonely := tuple(_lonely(before, after)):
        tables.append(Table("Measured in one of the two alone", ("contender, case", "in"), lonely))
    return tables


def _speeds(before: Results, after: Results) -> Iterator[tuple[str, ...]]:
    for case in before.cases:
        old, new = before.of_case(case), after.of_case(case)
        for name in old:
            if name in new and "offered_per_s" not in old[name].facts:  # each was offered a rate of its own
                ratio = unpaired_ratio(new[name].samples, old[name].samples)
                rates = (f"{median_rate(m.samples):,.1f} {m.unit}/s" for m in (old[name], new[name]))
                yield (f"{name}, {case}", *rates, str(ratio), VERDICTS[ratio.verdict])


def _facts(before: Results, after: Results) -> Iterator[tuple[str, ...]]:
    names = {contender.name for contender in after.contenders}
    for contender in before.contenders:
        if contender.name not in names:
            continue
        new = after.contender(contender.name).facts
        for fact, value in contender.facts.items():
            if fact in new and new[fact] != value:
                yield f"{contender.name}, {fact.replace('_', ' ')}", f"{value:,.4g}", f"{new[fact]:,.4g}"


def _lonely(before: Results, after: Results) -> Iterator[tuple[str, ...]]:
    keys = {
        label: {(m.contender, m.case) for m in results.measurements}
        for label, results in (("before", before), ("after", after))
    }
    for label, other in (("before", "after"), ("after", "before")):
        for name, case in sorted(keys[label] - keys[other]):
            yield f"{name}, {case}", f"{label} alone"
