"""The documents are true: their commands parse, the files they name exist."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from places import ROOT

from train_loop.command_line import parse_config

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


def test_the_launcher_reads_accelerate_config(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.config import load_config_from_file

    config = load_config_from_file(str(ROOT / "accelerate_config.yaml"))
    assert config.distributed_type == "MULTI_GPU"
    assert config.num_processes == 8
    assert config.mixed_precision in (None, "no")  # topology only
