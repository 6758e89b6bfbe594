"""Griffe extension: docstrings head their examples "Example:", the parser of Google style knows "Examples:"."""

from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Renames that section, so that the site shows an example as code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Changes one docstring."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
