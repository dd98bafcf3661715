"""A command line, a YAML file or both -> one TrainConfig, or a message that says what to fix."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import Phase, given, settings
from places import ROOT

from serve.contract.errors import InputError
from train_loop.command_line import RESUME_FLAGS, parse_config, write_yaml
from train_loop.config import CONFIG_FILE, TrainConfig

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """Return a writer of YAML files: fields -> the arguments that pass the file."""

    def write(**fields: Any) -> list[str]:
        path = tmp_path / f"recipe-{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump(fields), encoding="utf-8")
        return ["--config", str(path)]

    return write


def test_flags_win_over_the_file_and_the_file_over_defaults(recipe: Any) -> None:
    from_file = recipe(train_file="a.csv", epochs=7, batch_size=8)
    for argv in ([*from_file, "--epochs", "2"], ["--epochs=2", *from_file]):
        config = parse_config(argv)
        assert (config.epochs, config.batch_size, config.seed) == (2, 8, 42)


def test_a_later_file_wins_over_an_earlier_one(recipe: Any) -> None:
    argv = [*recipe(train_file="a.csv", epochs=7, seed=1), *recipe(epochs=5)]
    config = parse_config(argv)
    assert (config.epochs, config.seed) == (5, 1)


def test_a_flag_set_to_its_default_still_wins(recipe: Any) -> None:
    assert parse_config([*recipe(train_file="a.csv", epochs=7), "--epochs", "3"]).epochs == 3
    assert parse_config([*recipe(train_file="a.csv", max_length=8), "--max_length", "null"]).max_length is None


def test_appending_flags_extend_the_files_value(recipe: Any) -> None:
    from_file = recipe(train_file="a.csv", trackers=["tensorboard"], class_weights={"bad": 2, "good": 1})
    config = parse_config([*from_file, "--trackers+", "wandb", "--class_weights.bad", "5"])
    assert config.trackers == ["tensorboard", "wandb"]
    assert parse_config([*recipe(train_file="a.csv"), "--trackers", "mlflow,wandb"]).trackers == ["mlflow", "wandb"]
    assert config.class_weights == {"bad": 5.0, "good": 1.0}


@pytest.mark.parametrize("text", ["2e-4", "0.0002", "2.0e-04"])
def test_numbers_are_read_as_people_write_them(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"train_file: a.csv\nlearning_rate: {text}\n")
    assert parse_config(["--config", str(path)]).learning_rate == 2e-4
    assert parse_config(["--train_file", "a.csv", "--learning_rate", text]).learning_rate == 2e-4


def test_class_weights_and_label_names_on_the_command_line() -> None:
    argv = ["--train_file", "a.csv", "--class_weights", '{"bad": 2, "good": 1.5}', "--label_names", "[bad, good]"]
    config = parse_config(argv)
    assert config.class_weights == {"bad": 2.0, "good": 1.5}
    assert config.label_names == ["bad", "good"]


@pytest.mark.parametrize("word", ["null-and-void", "2026", "1e3", "true", "~x", "[a]", "{a: 1}", "e"])
def test_names_that_look_like_other_yaml_stay_names(word: str) -> None:
    assert parse_config(["--train_file", "a.csv", "--text_column", word]).text_column == word


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--train_file", "a.csv", "--epochs", "many"], "epochs"),
        (["--train_file", "a.csv", "--epochs", "2.5"], "epochs"),
        (["--train_file", "a.csv", "--learning_rate", "nan"], "learning_rate"),
        (["--train_file", "a.csv", "--lr_schedule", "quadratic"], "lr_schedule"),
        (["--train_file", "a.csv", "--class_weights", "blanced"], "blanced"),
        (["--train_file", "a.csv", "--compile", "perhaps"], "compile"),
        (["rows.csv"], "rows.csv"),
    ],
)
def test_an_unknown_flag_or_value_exits_with_2(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_config(argv)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert named in said
    assert len(said.splitlines()) < 12, "the error must not drown in the list of all flags"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"epohcs": 2}, "epohcs"),
        ({"epochs": "many"}, "many"),
        ({"loss": "hinge"}, "hinge"),
        ({"label_names": [0, 1]}, "label_names"),
        ({"trackers": "tensorboard"}, "trackers"),
    ],
)
def test_an_unknown_field_or_value_in_a_file_is_reported_with_the_file(
    recipe: Any, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=rf"recipe-0\.yaml: .*{named}"):
        parse_config(recipe(train_file="a.csv", **fields))


@pytest.mark.parametrize("flag", ["--epohcs", "--epoch"])  # an abbreviation would not win over a file
def test_a_mistyped_flag_is_reported_with_the_closest_match(flag: str) -> None:
    with pytest.raises(InputError, match=f"{flag}: no such field; did you mean --epochs"):
        parse_config(["--train_file", "a.csv", flag, "2"])


def test_a_mistyped_field_is_reported_even_if_a_flag_wins(recipe: Any) -> None:
    with pytest.raises(InputError, match="did you mean epochs"):
        parse_config([*recipe(train_file="a.csv", epohcs=2), "--epochs", "3"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1\n", "not YAML"),
        (b"", "name: value"),
        (b"- train_file\n", "name: value"),
        (b"train_file: caf\xe9.csv\n", "not YAML"),
    ],
)
def test_a_file_that_is_not_a_mapping_is_an_input_error(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=expected) as caught:
        parse_config(["--config", str(path)])
    assert str(path) in str(caught.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml: No such file"):
        parse_config(["--config", str(tmp_path / "absent.yaml")])


@pytest.mark.parametrize("in_clone", [True, False])
def test_no_argument_runs_the_quickstart_from_any_folder_and_says_so(
    in_clone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT if in_clone else tmp_path)
    config = parse_config([])
    assert config.train_file is not None
    assert Path(config.train_file).is_file()
    assert "recipes/quickstart.yaml" in capsys.readouterr().out


def test_a_recipe_is_found_by_its_name_but_a_file_of_that_name_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_config(["--config", "rte"]).text_pair_column == "sentence2"
    Path("rte").write_text("train_file: mine.csv", encoding="utf-8")
    assert parse_config(["--config", "rte"]).train_file == "mine.csv"


def test_rows_are_found_in_the_current_folder_then_next_to_the_file_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "r.yaml").write_text("train_file: rows.csv", encoding="utf-8")
    (folder / "rows.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert parse_config(["--config", "recipes/r.yaml"]).train_file == "recipes/rows.csv"
    Path("rows.csv").touch()
    assert parse_config(["--config", "recipes/r.yaml"]).train_file == "rows.csv"


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_parses(path: Path) -> None:
    config = parse_config(["--config", str(path)])
    assert config.train_file or config.dataset_name


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_accepts_the_users_own_rows(path: Path) -> None:
    config = parse_config(["--config", str(path), "--train_file", "mine.csv"])
    assert (config.train_file, config.dataset_name, config.dataset_config) == ("mine.csv", None, None)


def test_a_source_on_the_command_line_replaces_the_whole_source_of_the_file(recipe: Any) -> None:
    hub = recipe(dataset_name="ns/name", dataset_config="emoji", dataset_revision="v1", epochs=4)
    config = parse_config([*hub, "--train_file", "b.csv"])
    assert (config.train_file, config.dataset_name, config.dataset_config, config.dataset_revision, config.epochs) == (
        "b.csv",
        None,
        None,
        None,
        4,
    )
    files = recipe(train_file="a.csv", validation_file="v.csv", test_file="t.csv", epochs=4)
    config = parse_config([*files, "--train_file", "b.csv"])
    assert (config.train_file, config.validation_file, config.test_file, config.epochs) == ("b.csv", None, None, 4)
    config = parse_config([*files, "--dataset_name=ns/name"])
    assert (config.train_file, config.validation_file, config.dataset_name) == (None, None, "ns/name")


def test_other_source_flags_keep_the_source_of_the_file(recipe: Any) -> None:
    config = parse_config([*recipe(train_file="a.csv", validation_file="v.csv"), "--validation_file", "w.csv"])
    assert (config.train_file, config.validation_file) == ("a.csv", "w.csv")


def test_all_contradictions_are_listed_at_once(recipe: Any) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(
            [
                *recipe(epochs=0, dropout=1.5, class_weights={"bad": -1}),
                *("--train_file", "a.csv", "--batch_size", "-3", "--seed", "-1", "--run_name", "a/b"),
                *("--max_tokens_per_forward", "10", "--gradient_accumulation_steps", "2", "--label_column", "text"),
            ]
        )
    lines = str(caught.value).splitlines()
    expected = "--epochs --batch_size --dropout --seed --class_weights --run_name --label_column "
    for flag in (*expected.split(), "--gradient_accumulation_steps and --max_tokens_per_forward"):
        assert sum(line.startswith(flag) for line in lines) == 1, flag
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({}, "pass --train_file FILE"),
        ({"train_file": "a.csv", "dataset_name": "b"}, "pass one"),
        ({"dataset_name": "b", "validation_file": "v.csv"}, "--validation_file and --test_file need --train_file"),
        ({"train_file": "a.csv", "dataset_config": "c"}, "--dataset_config needs --dataset_name"),
        ({"train_file": "a.csv", "validation_fraction": 0.0}, "pass --validation_file or a fraction"),
        ({"train_file": "a.csv", "validation_fraction": 0.5, "test_fraction": 0.5}, "their sum must be below 1"),
        ({"train_file": "a.csv", "text_pair_column": "text"}, "a pair needs two columns"),
        ({"train_file": "a.csv", "text_pair_column": "label"}, "is also a text column"),
        ({"train_file": "a.csv", "max_length": 3}, "at least 4 tokens"),
        ({"train_file": "a.csv", "head_tokens": 9}, "--head_tokens needs --long_texts head_tail"),
        (
            {"train_file": "a.csv", "long_texts": "head_tail", "max_windows": 9},
            "--max_windows needs --long_texts windows",
        ),
        (
            {"train_file": "a.csv", "long_texts": "windows", "window_stride": 64, "max_length": 64},
            "--window_stride 64 must be below --max_length 64",
        ),
        ({"train_file": "a.csv", "label_names": ["a"]}, "two or more distinct names"),
        ({"train_file": "a.csv", "label_names": ["a", "a"]}, "two or more distinct names"),
        ({"train_file": "a.csv", "learning_rate": 0.0}, "must be positive"),
        ({"train_file": "a.csv", "max_grad_norm": float("inf")}, "must be positive"),
        ({"train_file": "a.csv", "weight_decay": float("nan")}, "must be 0 or more"),
        ({"train_file": "a.csv", "adam_beta2": 1.0}, r"must be in \[0, 1\)"),
        ({"train_file": "a.csv", "run_name": "latest"}, "plain folder name"),
        ({"train_file": "a.csv", "run_name": "../up"}, "plain folder name"),
        ({"train_file": "a.csv", "class_weights": {1: 2.0}}, "quotes around the labels"),
        ({"train_file": "a.csv", "compile_mode": "max-autotune"}, "needs --compile true"),
        ({"train_file": "a.csv", "compile": True, "cuda_graphs": True}, "pass one"),
        ({"train_file": "a.csv", "tf32": True}, "--mixed_precision no"),
    ],
)
def test_a_contradiction_names_its_remedy(fields: dict[str, Any], remedy: str) -> None:
    with pytest.raises(InputError, match=remedy) as caught:
        TrainConfig(**fields)
    assert len(str(caught.value).splitlines()) == 1


def test_class_weights_whose_labels_yaml_reads_as_other_types_ask_for_quotes(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("train_file: a.csv\nclass_weights: {no: 2, yes: 1}\n")  # YAML 1.1: False and True
    with pytest.raises(InputError, match=r"\[False, True\].*quotes"):
        parse_config(["--config", str(path)])
    path.write_text('train_file: a.csv\nclass_weights: {"no": 2, "1": 1}\n')
    assert parse_config(["--config", str(path)]).class_weights == {"no": 2.0, "1": 1.0}


@pytest.mark.parametrize(
    ("names", "read", "remedy"),
    [
        ("[no, yes]", "False, True", '["no", "yes"]'),
        ("[0, 1.5, it's]", "0, 1.5", '["0", "1.5", "it\'s"]'),
        ("[null, 2020-01-01]", "None, datetime.date(2020, 1, 1)", '["null", "2020-01-01"]'),
    ],
)
def test_label_names_that_yaml_reads_as_other_types_are_reported_with_quotes(
    tmp_path: Path, names: str, read: str, remedy: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"train_file: a.csv\nlabel_names: {names}\n")
    for argv, shown in (
        (["--config", str(path)], f"label_names: {remedy}"),
        (["--train_file", "a.csv", "--label_names", names], f"--label_names {shlex.quote(remedy)}"),
        (["--train_file", "a.csv", f"--label_names={names}"], f"--label_names {shlex.quote(remedy)}"),
    ):
        with pytest.raises(InputError) as caught:
            parse_config(argv)
        assert f"label_names: YAML reads {read} there, which are not strings" in str(caught.value)
        assert str(caught.value).endswith(f"put quotes around the names: {shown}")
    path.write_text(f"train_file: a.csv\nlabel_names: {remedy}\n")
    followed = parse_config(["--config", str(path)]).label_names
    assert followed == parse_config(["--train_file", "a.csv", "--label_names", remedy]).label_names
    assert followed == json.loads(remedy)


def test_resume_takes_the_runs_own_configuration(tmp_path: Path) -> None:
    saved = TrainConfig(train_file="a.csv", epochs=9, run_name="first", trackers=["tensorboard"])
    write_yaml(tmp_path / CONFIG_FILE, saved)
    config = parse_config(["--resume", str(tmp_path), "--log_every", "1", "--keep_checkpoints=5"])
    assert config == dataclasses.replace(saved, resume=str(tmp_path), log_every=1, keep_checkpoints=5)


def test_a_run_resumes_in_a_precision_the_new_machine_supports(tmp_path: Path) -> None:
    saved = TrainConfig(train_file="a.csv", mixed_precision="fp16")
    write_yaml(tmp_path / CONFIG_FILE, saved)
    assert parse_config(["--resume", str(tmp_path), "--mixed_precision=bf16"]).mixed_precision == "bf16"


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_only_the_main_process_announces_the_quickstart(
    rank: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RANK", rank)
    parse_config([])
    assert len(capsys.readouterr().out.splitlines()) == lines


@pytest.mark.parametrize("flag", ["--batch_size=1", "--train_file=b.csv", "--config=r.yaml", "--class_weights.a=2"])
def test_resume_refuses_what_would_change_the_run(tmp_path: Path, flag: str) -> None:
    write_yaml(tmp_path / CONFIG_FILE, TrainConfig(train_file="a.csv"))
    with pytest.raises(InputError, match="--resume continues a run as it was") as caught:
        parse_config(["--resume", str(tmp_path), flag])
    name = flag[2:].split("=")[0].split(".")[0]
    assert f"--{name} cannot change" in str(caught.value)
    for allowed in RESUME_FLAGS - {"resume"}:
        assert allowed in str(caught.value)


def test_resume_of_no_run_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        parse_config(["--resume", str(tmp_path / "absent")])


def test_resume_in_a_file_is_refused_because_it_would_bypass_the_runs_configuration(recipe: Any) -> None:
    with pytest.raises(InputError, match="pass it as --resume"):
        parse_config(recipe(train_file="a.csv", resume="runs/latest"))


WORDS = st.one_of(
    st.sampled_from(
        ["null", "true", "no", "1", "1e3", "2026-01-01", "[a]", "{a: 1}", "- x", "a: b", "#", "", " ", "~"]
    ),
    st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=8),
)
OPTIONAL_WORDS = st.none() | WORDS.map("w{}".format)  # "null" and its YAML synonyms mean None
FRACTIONS = st.floats(0, 0.45)
POSITIVE = st.floats(1e-300, 1e300)


@settings(max_examples=50, phases=[Phase.reuse, Phase.generate])  # shrinking takes minutes here
@given(
    fields=st.fixed_dictionaries(
        {"train_file": WORDS.map("w{}".format), "epochs": st.integers(1, 10**9), "learning_rate": POSITIVE},
        optional={
            "model_name": WORDS,
            "validation_file": OPTIONAL_WORDS,
            "validation_fraction": FRACTIONS.filter(bool),
            "test_fraction": FRACTIONS,
            "text_column": WORDS.map("t{}".format),
            "label_column": WORDS.map("l{}".format),
            "label_names": st.none() | st.lists(WORDS, min_size=2, max_size=4, unique=True),
            "class_weights": st.sampled_from(["none", "balanced"]) | st.dictionaries(WORDS, POSITIVE, max_size=3),
            "adam_epsilon": POSITIVE,
            "max_grad_norm": st.none() | POSITIVE,
            "dropout": st.none() | FRACTIONS,
            "max_steps": st.none() | st.integers(1, 10**12),
            "compile": st.booleans(),
            "trackers": st.lists(WORDS, max_size=2),
            "cleaning": st.sampled_from(["none", "whitespace", "alphanumeric"]),
        },
    )
)
def test_a_written_configuration_parses_back_equal(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]
) -> None:
    config = TrainConfig(**fields)
    path = tmp_path_factory.getbasetemp() / CONFIG_FILE
    write_yaml(path, config)
    assert parse_config(["--config", str(path)]) == config
