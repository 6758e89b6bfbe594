"""The command line, as the tests of runs have it."""

from tests.support.command_line import cache, jaxq

__all__ = ["cache", "jaxq"]
