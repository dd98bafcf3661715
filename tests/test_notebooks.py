"""The notebooks hold no outputs, and run from the first to the last in a folder like theirs."""

import json
import os
from pathlib import Path

import nbclient
import nbformat
import pytest
from places import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
EXECUTED = "EXECUTED_NOTEBOOKS"  # a folder to leave them in, with their outputs; .ci/docs shows them


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert cells[0]["source"][0].startswith("# ")
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_the_notebooks_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one kernel, to import torch once; names are forgotten in between, so that each stands on its own."""
    folder = tmp_path / "examples" / "notebooks"
    folder.mkdir(parents=True)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    books = [nbformat.read(path, as_version=4) for path in NOTEBOOKS]
    cells = []
    for book in books:
        cells += [*book.cells, nbformat.v4.new_code_cell("%reset -f", id=f"reset-{len(cells)}")]
    whole = nbformat.v4.new_notebook(cells=cells, metadata=books[0].metadata)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(whole, timeout=300, resources=resources, coalesce_streams=True).execute()
    outputs = [output for cell in whole.cells for output in cell.get("outputs", [])]
    assert [each["text"] for each in outputs if "Warning" in each.get("text", "")] == []
    assert (folder / "runs" / "latest" / "onnx" / "bundle.json").is_file()
    if kept := os.environ.get(EXECUTED):
        Path(kept).mkdir(parents=True, exist_ok=True)
        done = iter(whole.cells)
        for path, book in zip(NOTEBOOKS, books, strict=True):
            book.cells = [next(done) for _ in book.cells]
            next(done)
            for cell in book.cells:
                if "outputs" in cell:  # without the bars of progress
                    cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            text = nbformat.writes(book).replace(str(folder), "/examples/notebooks")
            Path(kept, path.name).write_text(text, encoding="utf-8")
