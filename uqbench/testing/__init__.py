"""Checks for parts that live outside of this repository: a backbone, a method, a layer, an ASE calculator.

Each takes a function that builds the part, runs all of its named checks, and raises one AssertionError that lists those
that failed and what they saw. They compute in double precision on a CPU, take seconds, and ask for no test framework:

    from uqbench.testing import check_method

    def test_my_method():
        check_method(lambda build_potential: MyMethod(build_potential, members=4))
"""

from uqbench.testing.backbones import check_backbone
from uqbench.testing.calculators import check_calculator
from uqbench.testing.methods import check_layer, check_method

__all__ = ["check_backbone", "check_calculator", "check_layer", "check_method"]
