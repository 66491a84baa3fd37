"""`python -m llmos` is the `llmos` command."""

from llmos.cli import main

main()
