import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.contract.errors import InputError
from serve.contract.rows.file import SUFFIXES, RowFile, RowFormat, row_format
from serve.contract.rows.reader import Rows, open_rows
from serve.contract.rows.row import Malformed, Row, not_utf8
from serve.encoder import without_surrogates


def opened(
    path: Path, needed: list[str], kept: list[str] | None, form: RowFormat | None = None
) -> contextlib.AbstractContextManager[Rows]:
    form = form or row_format(path, "--file", SUFFIXES)
    file = RowFile(
        path=path, form=form, name=f"--file {path}", columns_help="Choose", use_form="pass --input_format {}"
    )
    return open_rows(file, needed, kept, repair=without_surrogates)


def read(path: Path, needed: list[str], kept: list[str] | None = None, form: RowFormat | None = None) -> list[Any]:
    with opened(path, needed, [] if kept is None else kept, form) as rows:
        return [row.values if isinstance(row, Row) else row for row in rows.values]


def reasons(rows: list[Any]) -> list[str | None]:
    return [row.reason if isinstance(row, Malformed) else None for row in rows]


def test_csv_gives_the_columns_asked_for_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbfid,text,more\r\n1,"a, ""b""\nc",x\r\n\r\n2,NA,\r\n')
    assert read(path, ["text", "id"]) == [('a, "b"\nc', "1"), ("NA", "2")]
    with opened(path, ["text"], None) as rows:
        assert rows.columns == ("text", "id", "more")


def test_bad_csv_rows_are_reported_and_the_next_ones_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,text\n1,good\n2\n3,a,b\n4,caf\xe9\n5,"x"y\n6,fine\n7,"open\n')
    rows = read(path, ["text"])
    quotes = "a text with ',' or line breaks in it needs double quotes around it"
    remedy = 'a double quote inside a quoted field must be doubled ("")'
    assert reasons(rows) == [
        None,
        f"expected 2 fields, found 1; {quotes}",
        f"expected 2 fields, found 3; {quotes}",
        not_utf8("4,caf\udce9", path),
        f"a double quote is not closed as it should be (',' expected after '\"'); {remedy}",
        None,
        f"a double quote is not closed as it should be (unexpected end of data); {remedy}",
    ]
    assert [row.lines for row in rows if isinstance(row, Malformed)] == [(3, 3), (4, 4), (5, 5), (6, 6), (8, 8)]
    assert rows[2].content == "3,a,b"
    assert rows[3].content == "4,caf\udce9"
    assert [rows[4].content, rows[6].content] == ['5,"x"y', '7,"open']
    assert rows[5] == ("fine",)


@pytest.mark.parametrize(
    ("line", "text", "up_to"),
    [("row 99,99", "row 99", 201), ('"row, 99",99', "row, 99", 100), ('"row\n99",99', "row\n99", 100)],
)
def test_a_quote_that_is_not_closed_costs_its_own_row(tmp_path: Path, line: str, text: str, up_to: int) -> None:
    lines = [f"row {number},{number}" for number in range(1, 201)]
    lines[1], lines[98] = '"oops unclosed row 2,2', line
    path = tmp_path / "rows.csv"
    path.write_text("text,id\n" + "\n".join(lines))
    rows = read(path, ["text", "id"])
    refused = rows.pop(1)
    assert isinstance(refused, Malformed)
    assert (refused.content, refused.lines) == (lines[1], (3, 3))
    assert f"a double quote is not closed as it should be, up to line {up_to} (" in refused.reason
    assert rows == [(text if number == 99 else f"row {number}", str(number)) for number in range(1, 201) if number != 2]


def test_a_row_of_several_lines_with_a_wrong_number_of_fields_is_refused_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    quotes = "a text with ',' or line breaks in it needs double quotes around it"
    path.write_bytes(b'text,id\r\n"a\r\nb",1,x\r\n\r\nc,2\r\n')
    with opened(path, ["text"], []) as rows:
        assert list(rows.values) == [
            Malformed(f"expected 2 fields, found 3; {quotes}", '"a\r\nb",1,x', (2, 3)),
            Row(("c",), (5, 5)),
        ]


def test_a_text_of_a_megabyte_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("text\tid\n" + "x" * 1_000_000 + "\t1\n")
    assert len(read(path, ["text"])[0][0]) == 1_000_000


def test_plain_lines_are_texts_whatever_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes('a "b", c\r\n\n\u2028line separator\x0b\nnull\x00\n'.encode() + b"\xff\nlast")
    rows = read(path, ["text"])
    assert [row for row in rows if not isinstance(row, Malformed)] == [
        ('a "b", c',),
        ("",),
        ("\u2028line separator\x0b",),
        ("null\x00",),
        ("last",),
    ]
    assert reasons(rows)[4] == not_utf8("\udcff", path)


def test_jsonl_values_stay_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"text": "a", "n": {"x": [1, null]}}\n{"text": null}\n{"n": 2.5, "text": 3}\n')
    assert read(path, ["text"], ["n"]) == [("a", {"x": [1, None]}), (None, None), (3, 2.5)]


def test_a_json_object_without_the_text_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"text": "a"}\n\n{"other":  "x"}\n')
    with opened(path, ["text"], []) as rows:
        assert list(rows.values) == [
            Row(("a",), (2, 2)),
            Malformed("no column 'text'; it has 'other'", '{"other":  "x"}', (4, 4)),
        ]


def test_bad_json_is_reported_and_the_next_rows_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"\n[1]\n{"text": "b"}\n{"text": "\xff"}\n{"text": "c"}\n')
    found = reasons(read(path, ["text"]))
    assert found[0] is not None
    assert found[0].startswith("not JSON (")
    assert found[1:] == ["expected a JSON object, found list", None, not_utf8('{"text": "\udcff"}', path), None]


def test_a_file_without_an_object_is_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.contract.rows.json_lines.MAX_AHEAD", 3)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + "no json\n" * 2 + '{"text": "a"}\n')
    with pytest.raises(InputError, match="no JSON object in the first 3 lines; write one object per line"):
        read(path, ["text"])
    path.write_text("no json\n" * 2 + '{"text": "a"}\n' * 5)
    assert read(path, ["text"])[2:] == [("a",)] * 5


def test_half_surrogates_in_json_become_what_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(r'{"text": "a\ud800", "n": ["\udc00", {"k": "\ud83d\ude00"}]}')
    assert read(path, ["text"], ["n"]) == [("a\ufffd", ["\ufffd", {"k": "😀"}])]


def test_a_json_column_that_appears_later_is_reported_where_all_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "late": 1}\n')
    with opened(path, ["text"], None) as rows:
        values = list(rows.values)
    assert reasons(values) == [None, "column late, which the first row does not have: name the columns to keep"]
    assert read(path, ["text"]) == [("a",), ("b",)]


def test_parquet_gives_values_and_types(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table(
        {"text": ["a", None], "n": pa.array([1, 2], pa.int8()), "c": pa.array(["x", "y"]).dictionary_encode()}
    )
    pq.write_table(table, path)
    assert read(path, ["text"], ["c", "n"]) == [("a", "x", 1), (None, "y", 2)]
    with opened(path, ["text"], None) as rows:
        assert rows.arrow_types["n"] == pa.int8()
        assert rows.share_read() == 0
        list(rows.values)
        assert rows.share_read() == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"id,txet\n", r"no column 'text' \(did you mean 'txet'\?\); it has 'id', 'txet'"),
        ("rows.csv", b"text,text\n", "'text' names several columns"),
        ("rows.csv", b"", "line 1: empty; expected the names of the columns"),
        ("rows.jsonl", b'{"a": 1}\n', "no column 'text'; it has 'a'"),
        ("rows.parquet", b"no parquet", "not a readable parquet file"),
        ("rows.xlsx", b"", r"unknown type '\.xlsx'; expected one of \.csv"),
        ("rows", b"", r"its name has no suffix that shows its type; expected one of \.csv"),
        ("rows.csv", b"id;text\n", r"seems separated by ';': csv means commas here, .* convert it: python -c"),
        ("rows.csv", b"id\ttext\n", r"seems separated by '\\t': pass --input_format tsv"),
        ("rows.tsv", b"id,text\n", r"seems separated by ',': pass --input_format csv"),
    ],
)
def test_what_cannot_be_read_at_all_is_an_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name, ["text"])


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "rows.csv", ["text"])
    with pytest.raises(InputError, match="no such file"):
        row_format(tmp_path / "rows", "--file")


def test_a_folder_is_no_file_of_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; name one file in it"):
        row_format(tmp_path, "--file")
    with pytest.raises(InputError, match="is a folder; name one file in it"):
        read(tmp_path, ["text"], form="csv")


def test_the_command_that_converts_semicolons_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text('id;text\n1;"a, b; c"\n')
    with pytest.raises(InputError) as caught:
        read(Path("rows.csv"), ["text"])
    command = str(caught.value).partition("convert it: python ")[2]
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True)
    assert read(Path("commas.csv"), ["text"]) == [("a, b; c",)]
