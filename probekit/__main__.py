"""`python -m probekit` is the command line."""

from probekit.cli.app import main

main()
