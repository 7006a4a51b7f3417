"""Runs the command line: `python -m probekit`."""

from probekit.cli.app import main

main()
