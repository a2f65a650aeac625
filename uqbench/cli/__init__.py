"""The `uqbench` program: commands, overrides, sweeps, completion."""

from uqbench.cli.main import main as main
