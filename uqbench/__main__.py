"""`python -m uqbench` is `uqbench`."""

import sys

from uqbench.cli import main

sys.exit(main())
