"""What notebooks show of results that print as text."""

from __future__ import annotations

from html import escape


class PrintsInNotebooks:
    """Has a notebook show what ``print`` shows."""

    def _repr_html_(self) -> str:
        # said here, since notebooks have their own font for what is HTML
        return f'<pre style="font-family: monospace; line-height: 1.2">{escape(str(self))}</pre>'
