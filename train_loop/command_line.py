"""Flags, YAML files and `--resume` -> the configuration of a run.

A flag wins over the file. `--dataset_name` or `--train_file` on the command line replaces the file's whole source of
rows, so that a recipe for a Hub data set also runs on local files.
"""

import dataclasses
import difflib
import functools
import itertools
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml import BaseLoader, SafeLoader

from serve.contract.command import is_main_process
from serve.contract.errors import InputError
from serve.contract.files import write_bytes
from train_loop.config import BY_NAME, CONFIG_FILE, TrainConfig

RECIPES = next(
    folder for folder in (Path(__file__).parent / "recipes", Path(__file__).parents[1] / "recipes") if folder.is_dir()
)
"""Recipes: next to this file in an installed package, next to the package in a clone."""
QUICKSTART = "quickstart"
FILE_FIELDS = ("train_file", "validation_file", "test_file", "teacher_rows")
SOURCE_FIELDS = ("dataset_name", "dataset_config", "dataset_revision", "delimiter", *FILE_FIELDS)
LIST_FLAGS = ("--label_columns", "--label_names", "--trackers")  # those that also take names with commas between them
DECISION_FLAGS = {"abstain", "threshold", "threshold_scope", "value_range"}
"""Flags that say how scores become answers."""
RESUME_FLAGS = {
    *("resume", "gradient_accumulation_steps", "max_tokens_per_forward", "eval_max_tokens_per_forward"),
    *("mixed_precision", "tf32", "compile", "compile_mode", "cuda_graphs", "attn_implementation"),
    *("keep_checkpoints", "log_every", "trackers", "push_to_hub", "baselines"),
    *DECISION_FLAGS,
}
"""Flags allowed with --resume: those another machine may need, and those that do not affect the weights."""

LENGTH_FLAGS = {"epochs", "max_steps"}
"""Flags allowed with --resume, to train longer, if the learning rate of the run stays constant."""


def _new_parser(*, exit_on_error: bool = True) -> Any:
    # Imported here: the other commands do not need it.
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        exit_on_error=exit_on_error,
        prog="train_loop/main.py",
        usage="%(prog)s [--config FILE] [--FIELD VALUE ...]",  # a list of all fields would bury the error
        allow_abbrev=False,
        description="Train a text classifier. Without any argument: the quickstart.",
    )
    what = "YAML file with any of the fields below, or a recipe's name: tweet_sentiment."
    parser.add_argument("--config", action="append", default=None, help=what)
    parser.add_class_arguments(TrainConfig, as_group=False)
    return parser


_parser = functools.cache(_new_parser)
"""The parser of all fields, made once, since that takes a tenth of a second; it must not be changed."""


def parse_config(argv: Sequence[str]) -> TrainConfig:
    """Return the configuration of a command line: flags over `--config` files over defaults.

    `--resume RUN` reads the run's own file and allows only RESUME_FLAGS and, if its learning rate is constant,
    LENGTH_FLAGS; `--resume auto` is decided later, by `run/directory.py`. Exits with status 2 on an unknown flag or a
    value of another type, as argparse does.

    Raises:
        InputError: a file cannot be read, or fields contradict each other.
    """
    flags = {word[2:].split("=", 1)[0].split(".", 1)[0].rstrip("+") for word in argv if word.startswith("--")}
    if not argv:
        if is_main_process():
            print(f"No arguments: the quickstart, as in {_recipe(QUICKSTART)}.", flush=True)
        argv = ["--config", QUICKSTART]
    _require_known(flags - {"config", "help"}, "--")
    argv = _with_lists(argv)
    given = _parser().parse_args(list(argv))
    files = [_recipe(name) for name in given.pop("config") or []]
    if given["resume"] not in (None, BY_NAME):
        _require_resumable(flags, Path(given["resume"]))
        files = [Path(given["resume"]) / CONFIG_FILE]
    fields: dict[str, Any] = {}
    for path in files:
        fields |= _fields_of(path)
    if flag := next((name for name in ("config", "resume") if fields.get(name) is not None), None):
        raise InputError(f"{', '.join(map(str, files))}: {flag} belongs on the command line; pass it as --{flag}")
    if flags & {"dataset_name", "train_file"}:
        fields = {name: value for name, value in fields.items() if name not in SOURCE_FIELDS}
    if not fields:
        return _as_config(given)
    parser = _new_parser()
    parser.set_defaults(fields)
    return _as_config(parser.parse_args(list(argv)))


def config_of(fields: dict[str, Any], base: TrainConfig | None = None) -> TrainConfig:
    """Return the configuration of fields that are given in Python, over those of `base`, or of a run to `resume`.

    Raises:
        InputError: as in `parse_config`; also an unknown field, or a value of another type.
    """
    typed = typed_fields({name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in fields.items()}, "")
    if (resume := typed.get("resume")) not in (None, BY_NAME):
        _require_resumable(set(fields), Path(resume))
        base = read_config(Path(resume) / CONFIG_FILE)
    return TrainConfig(**typed) if base is None else dataclasses.replace(base, **typed)


def _with_lists(argv: Sequence[str]) -> list[str]:
    """Return a command line with a,b as ["a", "b"] where a field takes a list.

    Raises:
        InputError: YAML reads one of `--label_names` as something else than a string.
    """
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith(LIST_FLAGS) else [word])]
    for place, (flag, word) in enumerate(itertools.pairwise(words), 1):
        if flag == "--label_names":
            _require_strings(f"label_names: {word}", "--")
        if flag in LIST_FLAGS and not word.startswith(("[", "--")):
            words[place] = json.dumps(word.split(","), ensure_ascii=False)
    return words


def _require_resumable(flags: set[str], run: Path) -> None:
    if changed := sorted(flags - RESUME_FLAGS - LENGTH_FLAGS):
        raise InputError(
            f"--resume continues a run as it was; {', '.join('--' + name for name in changed)} cannot change. "
            f"Leave them out, or start a new run. What can change: {', '.join(sorted(RESUME_FLAGS - {'resume'}))}"
        )
    longer = sorted(flags & LENGTH_FLAGS)
    if longer and (config := read_config(run / CONFIG_FILE)).lr_schedule != "constant":
        name = "" if config.run_name is None else " --run_name NEW_NAME"
        more_steps = "" if config.max_steps is None else " --max_steps null"
        raise InputError(
            f"--resume continues a run as it was; {', '.join('--' + name for name in longer)} cannot change, because "
            f"its {config.lr_schedule} learning rate ends at 0 after the planned steps. To train longer, start "
            f"from its model: --config {shlex.quote(str(run / CONFIG_FILE))} "
            f"--model_name {shlex.quote(str(run / 'model'))}{name} --epochs MORE{more_steps}"
        )


def read_config(path: Path) -> TrainConfig:
    """Return the configuration of a finished run, from its file.

    Raises:
        InputError: the file cannot be read, has unknown fields, or values of another type or out of range.
    """
    return _as_config(_parser().parse_object(_fields_of(path)))


def _as_config(given: Any) -> TrainConfig:
    return TrainConfig(**{field.name: given[field.name] for field in dataclasses.fields(TrainConfig)})


def _fields_of(path: Path) -> dict[str, Any]:
    """Return the fields that a file gives, checked; a path of rows may be relative to the file."""
    fields = read_yaml(path)
    if isinstance(fields.get("label_names"), list):
        _require_strings(path.read_text(encoding="utf-8"), f"{path}: ")
    fields = typed_fields(fields, f"{path}: ")
    for name in FILE_FIELDS:
        file = fields.get(name)
        if file is not None and not Path(file).exists() and (path.parent / file).exists():
            fields[name] = str(path.parent / file)
    return fields


def typed_fields(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Return fields with their values as the configuration takes them: 3e-5, which YAML reads as a string, is a number.

    Raises:
        InputError: there is no such field, or it has another type; the message begins with `where`.
    """
    import jsonargparse

    _require_known(fields, "", where=where)
    try:
        typed = _parser(exit_on_error=False).parse_object(fields)
    except jsonargparse.ArgumentError as error:
        raise InputError(f"{where}{' '.join(str(error).split())}") from error
    return {name: typed[name] for name in fields}


def _recipe(name: str) -> Path:
    """Return the file that --config names: a path, or a recipe that ships with rawloop."""
    path, shipped = Path(name), RECIPES / f"{name}.yaml"
    return shipped if not path.is_file() and shipped.is_file() else path


def _require_strings(text: str, where: str) -> None:
    """Check that YAML reads the label names in `text` as strings: no, yes and 1 it does not.

    Raises:
        InputError: it does not; the message has them with quotes.
    """
    try:
        read, written = ((yaml.load(text, loader) or {}).get("label_names") for loader in (SafeLoader, BaseLoader))
    except (yaml.YAMLError, AttributeError):
        return  # whoever reads it reports that
    if isinstance(read, list) and (strange := [name for name in read if not isinstance(name, str)]):
        quoted = json.dumps(written, ensure_ascii=False)
        remedy = f"--label_names {shlex.quote(quoted)}" if where == "--" else f"label_names: {quoted}"
        raise InputError(
            f"{where}label_names: YAML reads {', '.join(map(repr, strange))} there, which are not strings; put quotes "
            f"around the names: {remedy}"
        )


def _require_known(names: Iterable[str], prefix: str, *, where: str = "") -> None:
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    for name in names:
        if name not in (*known, "config"):
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else "--help lists all fields"
            raise InputError(f"{where}{prefix}{name}: no such field; {hint}")


class _UniqueKeys(SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = [key.value for key, _ in node.value]
        if twice := [key for place, key in enumerate(found) if key in found[:place]]:
            raise yaml.constructor.ConstructorError(problem=f"{twice[0]} is there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        InputError: the file is absent, not YAML or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        shipped = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise InputError(f"{path}: {error.strerror}; the recipes that ship with rawloop are {shipped}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected `name: value` lines, found {type(content).__name__}")
    return content


def write_yaml(path: Path, config: TrainConfig) -> None:
    """Write the resolved configuration so that it runs again with `--config`."""
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    write_bytes(path, text.encode())
