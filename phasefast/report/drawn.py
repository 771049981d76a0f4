"""A figure that a notebook shows by itself, whatever pyplot is set to; imported where something is drawn."""

from __future__ import annotations

import io

import matplotlib.style
from matplotlib.figure import Figure

_SHOWN = 900  # pixels of width, which pictures are made to be read at


class Picture(Figure):
    """A matplotlib figure: ``savefig`` writes it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """What IPython shows, and its width: as https://ipython.readthedocs.io/en/stable/config/integrating.html."""
        image = io.BytesIO()
        with matplotlib.style.context("default"):
            self.savefig(image, format="png")
        return image.getvalue(), {"width": min(_SHOWN, round(self.get_figwidth() * self.dpi))}
