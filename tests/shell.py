"""The command line, called as from a shell."""

from __future__ import annotations

from typer.testing import CliRunner

from latentcell.cli import app


def latentcell(*arguments: object, status: int = 0) -> str:
    """What a command prints; it must end with `status` and not with an exception."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.output
