"""A figure that notebooks show; importing this needs matplotlib."""

from __future__ import annotations

import io
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure as _Figure


class Figure(_Figure):
    """A figure without a window and without global state: pyplot is not involved."""

    def savefig(self, *args: Any, dpi: float | str = 200, **kwargs: Any) -> None:
        """Write the figure: as pixels sharp in print, in PDF with fonts that journals take, TrueType."""
        with rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}):
            super().savefig(*args, dpi=dpi, **kwargs)

    def _repr_png_(self) -> bytes:
        """Show the figure in a notebook, which knows those of pyplot only."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi="figure")
        return file.getvalue()
