"""The table of the quantization benchmark."""

from bench.harness.report import Table, cell, headline_cells, table_of
from bench.harness.results import Results
from bench.harness.samples import median_rate


def quantization_table(results: Results) -> Table:
    """Return the table of docs/QUANTIZATION.md."""
    cases = {case: results.of_case(case) for case in results.cases}
    rows = [
        {
            "graph": contender.name,
            **{
                f"rows/s, {case}": cell(median_rate(m.samples) if m else None, ",.0f")
                for case in results.cases
                for m in [cases[case].get(contender.name)]
            },
            "agrees with PyTorch": cell(facts.get("agreement"), ".2%"),
            "accuracy": cell(facts.get("accuracy"), ".4f"),
            "flips": cell(facts.get("flips"), ",.0f"),
            "max change of p": cell(facts.get("max_probability_change"), ".2g"),
            "MB": cell(facts.get("size_mb"), ",.1f"),
            **headline_cells(results, cases["batch 32"][contender.name]),
        }
        for contender in results.contenders
        if contender.name in cases["batch 32"]
        for facts in [contender.facts]
    ]
    note = (
        f"The model alone on {results.work['rows']:,} held-out rows; ratios in batches of 32. Flips: rows with another "
        "label alone than in batches of 32 in order of arrival; max change of p: the largest change of a probability."
    )
    return table_of("Ways to 8 bits", rows, note=note)
