"""A figure that notebooks show; importing this needs matplotlib."""

from __future__ import annotations

import io

from matplotlib.figure import Figure as _Figure


class Figure(_Figure):
    """A figure without a window and without global state: pyplot is not involved."""

    def _repr_png_(self) -> bytes:
        """Show the figure in a notebook, which knows those of pyplot only."""
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()
