import io

from rich.console import Console

from export.console import Progress


def test_progress_is_lines_in_a_file_and_bars_on_a_terminal() -> None:
    for is_terminal in (False, True):
        stream = io.StringIO()
        with Progress(Console(file=stream, force_terminal=is_terminal, width=80)).count("Counting", 3) as advance:
            advance(3)
        assert "Counting ..." in stream.getvalue()
        assert ("3/3" in stream.getvalue()) == is_terminal
