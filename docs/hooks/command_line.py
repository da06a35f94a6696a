"""Writes the help of a command into the page: `<!-- help: trial -->` becomes what `seatrial trial --help` prints.

The page is made from the program itself, so it cannot name an option that does not exist.
"""

from __future__ import annotations

import re
from typing import Any

from typer.testing import CliRunner

MARK = re.compile(r"<!-- help: (\w+) -->")
PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "104", "TERMINAL_WIDTH": "104"}


def help_text(command: str) -> str:
    """Return the help of one command as a Markdown block; raises LookupError for a command that does not exist."""
    from seatrial.cli.main import app

    result = CliRunner().invoke(app, [command, "--help"], env=PLAIN, prog_name="seatrial")
    if result.exit_code:
        raise LookupError(f"`seatrial {command} --help` ended with {result.exit_code}: {result.output}")
    lines = [line.rstrip() for line in result.output.splitlines()]
    return "\n".join(["```text", *lines, "```"])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the marks of a page (called by mkdocs)."""
    return MARK.sub(lambda mark: help_text(mark[1]), markdown)
