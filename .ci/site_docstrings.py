"""The indented formulas of our docstrings as code blocks, which Markdown wants between blank lines."""

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$", re.MULTILINE)


def spaced(docstring: str) -> str:
    """The docstring with blank lines around the indented lines before its first section."""
    start = _SECTION.search(docstring)
    place = len(docstring) if start is None else start.start()
    text, rest = docstring[:place], docstring[place:]
    text = re.sub(r"(?m)^(\S.*)\n(?= {4})", r"\1\n\n", text)
    text = re.sub(r"(?m)^( {4}.*)\n(?=\S)", r"\1\n\n", text)
    return text + rest


class Formulas(griffe.Extension):
    """Change the docstrings that are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of what was read."""
        if obj.docstring is not None:
            obj.docstring.value = spaced(obj.docstring.value)
