"""The HTTP server; `ui.html` is the page at `/ui`: one file, no outside address."""
