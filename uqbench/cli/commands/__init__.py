"""One module per command of the `uqbench` program; see uqbench/cli/main.py."""
