"""`python -m fastdb` is the command line."""

from fastdb.cli import main

main()
