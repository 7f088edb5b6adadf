"""The command line of planer, run in the process of the tests."""

from __future__ import annotations

import pytest

from planer.__main__ import main


def refused_line(capsys, *arguments: str) -> str:
    """The only line that a refused command prints."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    line = end.value.code if isinstance(end.value.code, str) else capsys.readouterr().err.strip()
    assert line.startswith("planer: ") and "\n" not in line
    return line
