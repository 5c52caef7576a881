"""Results as text, and as what a notebook shows of them."""

from __future__ import annotations

import io
from html import escape
from typing import Any

from rich.console import Console, RenderableType

_WIDTH = 110

# names may have brackets and colons in them
_AS_IT_IS: Any = {"markup": False, "emoji": False}

# as a notebook shows text; no wider than its cell
_HTML = (
    '<pre style="white-space:pre;overflow-x:auto;line-height:normal;'
    "font-family:Menlo,Consolas,'DejaVu Sans Mono',monospace\">{code}</pre>"
)


class PrintsInNotebooks:
    """Has IPython and notebooks show what ``print`` shows."""

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        # not _repr_pretty_, over which IPython prefers the __repr__ of a class that is nearer
        return {"text/plain": str(self)}

    def _repr_html_(self) -> str:
        return _HTML.format(code=escape(str(self)))


class Printed(PrintsInNotebooks):
    """What prints as rich renders it: in a terminal with colours, by ``print`` and in a notebook."""

    def __rich__(self) -> RenderableType:
        raise NotImplementedError

    def __str__(self) -> str:
        text = io.StringIO()
        # in a notebook rich would display the text rather than write it
        Console(file=text, width=_WIDTH, color_system=None, force_jupyter=False, **_AS_IT_IS).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _repr_html_(self) -> str:
        """Show the text, with colours, where a notebook shows a value."""
        console = Console(
            file=io.StringIO(),
            width=_WIDTH,
            color_system="truecolor",
            force_jupyter=False,
            record=True,
            highlight=False,
            **_AS_IT_IS,
        )
        console.print(self)
        return console.export_html(inline_styles=True, code_format=_HTML)
