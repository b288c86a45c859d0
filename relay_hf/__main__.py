"""`python -m relay_hf`: the command line."""

from .cli import main

main()
