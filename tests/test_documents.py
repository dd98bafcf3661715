"""The documents are true: their commands parse, the files they name exist."""

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT

from bench.__main__ import parse as parse_bench
from export.__main__ import _parser as export_parser
from rawloop import MODULES
from serve.cluster import _parser as cluster_parser
from serve.http.settings import parse_settings
from serve.mlflow import _parser as mlflow_parser
from serve.predict import _parser as predict_parser
from train_loop.command_line import parse_config
from train_loop.curve import _parser as curve_parser
from train_loop.evaluation import _parser as evaluation_parser
from train_loop.hub.__main__ import _parser as hub_parser
from train_loop.search.__main__ import _parser as search_parser

README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "TRAINING.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].replace("...", "").strip()
    for line in f"{README}\n{TRAINING}".replace("\\\n", " ").splitlines()
    if "train_loop/main.py" in line and line.startswith(("accelerate launch", "ACCELERATE_USE_CPU"))
]


@pytest.mark.parametrize("command", sorted({c for c in COMMANDS if "--resume" not in c and "--help" not in c}))
def test_the_training_commands_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command.partition("train_loop/main.py")[2])
    if arguments == ["--config"]:  # "--config ..." stands for any recipe
        arguments.append("recipes/quickstart.yaml")
    config = parse_config(arguments)
    assert config.train_file or config.dataset_name


DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = [
    (path.name, language, block)
    for path in DOCS
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)
]
PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "bench": parse_bench,
    "export": lambda argv: export_parser().parse_args(argv),
    "serve": lambda argv: parse_settings(argv, {}),
    "serve.cluster": lambda argv: cluster_parser().parse_args(argv),
    "serve.mlflow": lambda argv: mlflow_parser().parse_args(argv),
    "serve.predict": lambda argv: predict_parser().parse_args(argv),
    "train_loop.curve": lambda argv: parse_config(curve_parser().parse_known_args(argv)[1]),
    "train_loop.evaluation": lambda argv: evaluation_parser().parse_args(argv),
    "train_loop.hub": lambda argv: hub_parser().parse_args(argv),
    "train_loop.main": parse_config,
    "train_loop.search": lambda argv: parse_config(search_parser().parse_known_args(argv)[1]),
}
"""Module -> what reads its flags; it ends with status 2, or an InputError, where one is wrong."""


def commands_of_the_docs() -> Iterator[tuple[str, str, str]]:
    for name, _, block in FENCED:
        for line in block.replace("\\\n", " ").splitlines():
            command = line.partition("  #")[0].strip()
            found = re.match(r"(?:python -m|accelerate launch -m|rawloop) ([\w.]+) (.*)", command)
            if found and not re.search(r"\.\.\. |--help|[|\[]", command):
                module = MODULES.get(found[1], found[1]).removesuffix(".__main__")
                if module in PARSERS:
                    yield name, module, found[2]


@pytest.mark.parametrize(("document", "module", "flags"), [*commands_of_the_docs()])
def test_the_commands_of_the_pages_parse(
    document: str, module: str, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert PARSERS[module](shlex.split(flags)) is not None


def test_every_command_is_parsed_somewhere() -> None:
    modules = {module.removesuffix(".__main__") for module in (*MODULES.values(), "serve.cluster", "serve.mlflow")}
    assert modules == {*PARSERS} == {module for _, module, _ in commands_of_the_docs()}


@pytest.mark.parametrize("block", [block for _, language, block in FENCED if language == "python"])
def test_what_the_pages_import_exists(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module in ("export", "serve", "train_loop"):
            package = importlib.import_module(node.module)
            assert {alias.name for alias in node.names} <= {*package.__all__}
            assert all(getattr(package, alias.name) for alias in node.names)


def test_every_public_name_is_listed_and_has_a_reference() -> None:
    pages = [(ROOT / "docs" / name).read_text("utf-8") for name in ("API.md", "REFERENCE.md")]
    for module in ("export", "serve", "train_loop"):
        for name in importlib.import_module(module).__all__:
            assert f"`{name}`" in pages[0]
            assert re.search(rf"^::: \w+\.{name}$", pages[1], re.MULTILINE), name


def test_both_set_up_commands_are_one_line_and_install_extras_that_exist() -> None:
    blocks = dict(re.findall(r"```bash (\w+)\n(.*?)\n```", README, re.DOTALL))
    assert list(blocks) == ["quickstart", "tests"]
    assert not any("\n" in command for command in blocks.values())
    assert ".[demo]" in blocks["quickstart"]
    assert blocks["quickstart"].endswith("rawloop quickstart")
    assert ".[test]" in blocks["tests"]
    assert "pytest" in blocks["tests"]
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "\ndemo = [" in pyproject
    assert "\ntest = [" in pyproject


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1_100


@pytest.mark.parametrize(
    "document", [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
)
def test_the_files_that_documents_name_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(
        re.findall(r"`((?:bench|export|train_loop|serve|tests|recipes|docs|\.ci|examples)/[\w./]+[\w/])`", text)
    )
    missing = [name for name in sorted(named) if not (ROOT / name).exists()]
    assert not missing


def test_the_architecture_lists_every_file_by_its_own_first_line() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    missing = [
        line
        for package in ("bench", "export", "serve", "train_loop")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "__init__.py"
        and (line := f"| `{path.relative_to(ROOT).as_posix()}` | {first_line_of(path)} |") not in text
    ]
    assert not missing


def first_line_of(module: Path) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n")[0].rstrip(".").replace("|", "\\|")


def extras_named_anywhere() -> set[str]:
    """Return every combination of extras that a document, a message, a script or a container installs."""
    places = [*ROOT.glob("*.md"), *ROOT.glob("*.txt"), *(ROOT / ".ci").iterdir(), ROOT / "pyproject.toml"]
    for folder in ("bench", "docs", "examples", "export", "serve", "train_loop"):
        places += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".cpu", ".cuda")]
    found = set((ROOT / ".ci" / "extras").read_text("utf-8").partition("*:-")[2].partition("}")[0].split())
    for place in places:
        text = place.read_text("utf-8")
        found |= {*re.findall(r"(?:rawloop|'\.)\[([a-z,-]+)\]", text), *re.findall(r'extra="([a-z,-]+)",', text)}
    return found


def packages_of(extras: str, offered: dict[str, list[str]]) -> set[str]:
    """Return the names of what a combination of extras requires, those that its extras name included."""
    found: set[str] = set()
    for extra in extras.split(","):
        for requirement in map(Requirement, offered[extra]):
            inner = packages_of(",".join(requirement.extras), offered) if requirement.name == "rawloop" else set()
            found |= inner or {requirement.name}
    return found


def test_no_combination_of_extras_brings_two_onnx_runtimes() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        offered = tomllib.load(file)["project"]["optional-dependencies"]
    named = extras_named_anywhere()
    assert {"demo", "test", "bench", "cpu,server", "cpu,bench-base", "gpu,export,test-base", "gpu,test-base"} <= named
    swapped = {re.sub(r"\bcpu\b", "gpu", extras) for extras in named}  # as messages offer
    runtimes = {
        extras: {"onnxruntime", "onnxruntime-gpu"} & packages_of(extras, offered)
        for extras in {*named, *swapped, *(f"gpu,export,{extra}" for extra in offered if extra.endswith("-base"))}
    }
    assert {extras for extras, found in runtimes.items() if len(found) > 1} == set()
    for extra in ("demo", "bench", "test"):  # as for a CPU they always were
        assert runtimes[extra] == {"onnxruntime"}
        assert packages_of(extra, offered) - {"onnxruntime"} == packages_of(f"export,{extra}-base", offered)


def test_optimum_comes_with_export_and_never_holds_back_transformers_5() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        offered = tomllib.load(file)["project"]["optional-dependencies"]
    optimum = {"optimum", "optimum-onnx"}
    for extra in ("export", "demo", "bench", "test", "dev"):
        assert optimum <= packages_of(extra, offered)
    for extra in ("train", *(extra for extra in offered if extra.endswith("-base"))):
        assert not optimum & packages_of(extra, offered)


@pytest.mark.parametrize(
    ("name", "version", "has_optimum"),
    [("constraints.txt", "4.57.6", True), ("constraints-transformers5.txt", "5.24.0", False)],
)
def test_the_constraints_hold_what_is_required_in_exact_versions(name: str, version: str, has_optimum: bool) -> None:
    lines = [line for line in (ROOT / name).read_text("utf-8").splitlines() if not line.startswith("#")]
    pinned = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    assert len(pinned) == len(lines)
    assert pinned["transformers"] == version
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    elsewhere = {"mlflow"} if has_optimum else {"mlflow", "docs"}  # the site has an environment of its own
    extras = {name: group for name, group in project["optional-dependencies"].items() if name not in elsewhere}
    for group in (project["dependencies"], *extras.values()):
        for requirement in map(Requirement, group):
            if requirement.name != "rawloop" and (has_optimum or not requirement.name.startswith("optimum")):
                assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_the_launcher_takes_the_number_of_gpus_from_the_user_or_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands import launch

    def launched(*flags: str) -> Any:
        parser = launch.launch_command_parser()
        return launch._validate_launch_command(parser.parse_args([*flags, "train_loop/main.py"]))[0]

    config = ("--config_file", str(ROOT / "accelerate_config.yaml"))
    given = launched(*config, "--num_processes", "4")
    assert (given.num_processes, given.multi_gpu) == (4, True)
    assert given.mixed_precision == "no"  # topology only
    with pytest.raises(ValueError, match="manually pass in `--num_processes`"):
        launched(*config)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("accelerate.commands.launch.default_config_file", "no such file")
    counted = launched()
    assert (counted.num_processes, counted.multi_gpu) == (3, True)
