"""The indented formulas of our docstrings as code blocks, which Markdown wants between blank lines."""

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$", re.MULTILINE)


class Formulas(griffe.Extension):
    """Put blank lines around the indented lines before the first section."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of what was read."""
        if obj.docstring is None:
            return
        start = _SECTION.search(obj.docstring.value)
        place = len(obj.docstring.value) if start is None else start.start()
        text, rest = obj.docstring.value[:place], obj.docstring.value[place:]
        text = re.sub(r"(?m)^(\S.*)\n(?= {4})", r"\1\n\n", text)
        text = re.sub(r"(?m)^( {4}.*)\n(?=\S)", r"\1\n\n", text)
        obj.docstring.value = text + rest
