"""The command line, as the tests of runs have it."""

from tests.run.conftest import cache, jaxq

__all__ = ["cache", "jaxq"]
