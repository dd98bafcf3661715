"""What changed between two `results.json`, and whether it means anything: `python -m bench compare A B`."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.harness.report import Rows, build_console, print_table
from bench.harness.results import Results, read_results
from bench.harness.samples import median_rate, unpaired_ratio
from serve.contract.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What changed between two results, and whether it means anything."""

    before: Path
    after: Path


def run(options: CompareOptions, command: str) -> None:
    """Print the comparison; raises InputError if a file cannot be read, or the work was different."""
    before, after = read_results(options.before), read_results(options.after)
    console = build_console()
    for title, rows in compare(before, after).items():
        print_table(title, rows, console)
    for doubt in doubts(before, after):
        console.print(f"note: {doubt}", style="yellow", highlight=False, markup=False)


def compare(before: Results, after: Results) -> dict[str, Rows]:
    """Return title -> rows: speeds with intervals, then the other facts that changed.

    Raises:
        InputError: the work was different, or no measurement is in both.
    """
    old_work, new_work = ({"benchmark": each.benchmark} | each.work for each in (before, after))
    if differences := list(_differences(old_work, new_work, "{} ({} and {})")):
        raise InputError(
            f"compare: different work: {', '.join(differences)}; run one of them again with the same options"
        )
    speeds = []
    for old in before.measurements:
        new = after.of_case(old.case).get(old.contender)
        if new is not None and "offered_per_s" not in old.facts:  # there, each was offered a rate of its own
            ratio = unpaired_ratio(new.samples, old.samples)
            speeds.append(
                {
                    "contender, case": f"{old.contender}, {old.case}",
                    "before": f"{median_rate(old.samples):,.1f} {old.unit}/s",
                    "after": f"{median_rate(new.samples):,.1f} {new.unit}/s",
                    "after / before": str(ratio),
                    "verdict": ratio.verdict,
                }
            )
    if not speeds:
        raise InputError("compare: no contender was measured in both; run both with the same --contenders")
    old_facts, new_facts = ({each.name: each.facts for each in results.contenders} for results in (before, after))
    facts = [
        {"contender, figure": f"{name}, {fact}", "before": f"{value:,.4g}", "after": f"{new_facts[name][fact]:,.4g}"}
        for name, known in old_facts.items()
        for fact, value in known.items()
        if new_facts.get(name, {}).get(fact, value) != value
    ]
    found: dict[str, Rows] = {"Speeds": speeds}
    return found | ({"Other figures that changed": facts} if facts else {})


def doubts(before: Results, after: Results) -> list[str]:
    """Return what may have changed the figures besides the code."""
    old, new = (dataclasses.asdict(results.machine) for results in (before, after))
    versions = old.pop("versions"), new.pop("versions")
    return [
        *_differences(old, new, "not the same machine: {} was {}, and is {}"),
        *_differences(*versions, "not the same version: {} {} -> {}"),
        *(f"before: {warning}" for warning in before.warnings),
        *(f"after: {warning}" for warning in after.warnings),
    ]


def _differences(before: Mapping[str, object], after: Mapping[str, object], form: str) -> Iterator[str]:
    """Yield each key with its two values where they differ."""
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            yield form.format(key, before.get(key, "absent"), after.get(key, "absent"))
