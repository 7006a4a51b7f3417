"""`python -m probekit` is the command line."""

from probekit.cli import main

main()
