"""Labels that no classifier of one label per row can be trained on: what they are, and a command that helps."""

import ast
import json
import math
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

YES, NO = ("1", "1.0", "True"), ("0", "0.0", "False")  # the cells of columns that say whether a row has a label
MAX_FRACTIONS = 10  # more different labels that are numbers with fractions are taken for a value to predict


def is_several(label: str) -> bool:
    """Whether the text of a label is a list of several, as pandas writes lists into csv: `['a', 'b']`."""
    if not (label.startswith("[") and label.endswith("]")):
        return False
    if re.fullmatch(r"\[[01](\s+[01])+\]", label):  # as numpy prints them
        return True
    try:
        return len(ast.literal_eval(label)) > 1
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False


def are_fractions(labels: Collection[str]) -> bool:
    """Whether all labels are finite numbers, and one has a fraction."""
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return False
    return all(map(math.isfinite, numbers)) and any(number % 1 for number in numbers)


def several_labels(file: str | None, column: str, label: Any, delimiter: str | None = None) -> str:
    """Return what to say of a row with several labels where one is expected.

    `label` is an example: a list, or its text; `file` holds it, if it is in one.
    """
    is_text = isinstance(label, str)
    found = ast.literal_eval(label) if is_text and "," in label else label
    target = f"d[{json.dumps(column)}]"
    if isinstance(found, list) and len(found) == 1:
        change = f"{target} = [x for [x] in {target}]"  # fails if a row has several
        way_out = _command(file, change, delimiter)
        return f"lists of one label, such as {label!r:.80}; take it out{way_out}"
    problem = f"several labels in a row, such as {label!r:.80}"
    if not is_text:
        return f"{problem}, and other rows have one; write each as a list, [] for none, in every file"
    if not isinstance(found, (list, tuple)) or all(value in (0, 1) for value in found):
        return f"{problem}; write a column of 0 and 1 for each label, and pass --label_columns"
    change = f'{target} = ["|".join(map(str, ast.literal_eval(x))) for x in {target}]'
    way_out = _command(file, change, delimiter)
    return f"{problem}; write them with a separator, and pass --label_separator '|'{way_out}"


def a_value(labels: Sequence[Any]) -> str:
    """Return what to say of labels that are numbers with fractions."""
    shown = ", ".join(f"{label}" for label in labels[:4])
    example = next((label for label in labels if float(label) % 1), labels[0])
    return (
        f"numbers with fractions ({shown}{', ...' if len(labels) > 4 else ''}) look like a value to predict; to learn "
        f"it, pass --problem_type regression. If each number is a class, write it as a name, such as 'v{example}'"
    )


def bad_json_label(problem: str, file: str, column: str, kind: type, label: Any) -> str:
    """Return what to say of a JSON label that is not of the type of those before it.

    `kind` is the type of those before; `problem` is said of any other value.
    """
    if isinstance(label, list):
        return several_labels(file, column, label)
    if isinstance(label, float) and kind in (int, float):
        return a_value([label])
    if isinstance(label, dict) or type(label) is kind:
        return problem
    target = f"d[{json.dumps(column)}]"
    return problem + _command(file, f"{target} = {target}.astype(str)")


def one_hot(file: str, wanted: str, columns: Sequence[str], *, one_each: bool, delimiter: str | None) -> str:
    """Return what to say of columns of 0 and 1 in the place of a label column; `one_each`: one is 1 in every row."""
    shown = ", ".join(map(repr, columns[:6])) + (", ..." if len(columns) > 6 else "")
    if not one_each:
        given = json.dumps(list(columns)) if "," in "".join(columns) else ",".join(columns)
        return (
            f"{shown} hold only 0 and 1, several or none of them 1 in a row; if they are labels, pass "
            f"--label_columns {shlex.quote(given)}"
        )
    marks = f"d[{json.dumps(list(columns))}].astype(str).isin({json.dumps(list(YES))})"
    change = f"d[{json.dumps(wanted)}] = {marks}.astype(int).idxmax(axis=1)"
    way_out = _command(file, change, delimiter)
    return f"{shown} hold one 1 in each row; turn them into one column{way_out}"


def _command(file: str | None, change: str, delimiter: str | None = None) -> str:
    """Return ", for example `python -c ...`", a program over a pandas table `d`."""
    if file is None:
        return f", for example in pandas: {change}"
    name, suffix = json.dumps(file), Path(file.removesuffix(".gz")).suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        read = f"pd.read_json({name}, lines=True, dtype=False)"
    elif suffix == ".parquet":
        read = f"pd.read_parquet({name})"
    else:
        sep = delimiter or ("\t" if suffix == ".tsv" else ",")
        separator = "" if sep == "," else f", sep={json.dumps(sep)}"
        read = f"pd.read_csv({name}, dtype=str, keep_default_na=False{separator})"
    imports = "import ast, pandas as pd" if "ast." in change else "import pandas as pd"
    program = f'{imports}; d = {read}; {change}; d.to_csv("labelled.csv", index=False)'
    return f": python -c {shlex.quote(program)}"
