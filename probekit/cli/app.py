"""The command-line application: the commands of the other modules, and the entry point."""

from __future__ import annotations

from typing import Annotated

import typer

from probekit.cli import measure, models, results, train  # noqa: F401 (commands)
from probekit.cli.command import app


def _version(wanted: bool) -> None:
    if wanted:
        from probekit import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Understand trained vision networks, unit by unit."""


def main() -> None:
    """Runs the command-line application."""
    app()


if __name__ == "__main__":
    main()
