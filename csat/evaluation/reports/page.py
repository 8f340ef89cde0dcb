"""What the reports share: one HTML file that is readable offline, everything from outside escaped, figures inside it."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

TEMPLATES = Path(__file__).parent
LONGEST_LABEL = 28  # characters of a name on an axis


def render(template: str, **values: Any) -> str:
    """A page from one of the templates beside this file. What a file, a class or a slide is called is escaped."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template).render(**values)


def figure_uri(figure: Figure) -> str:
    """A figure as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, transparent=True)  # the page's own background, light or dark
    return _data_uri(buffer.getvalue(), "png")


def image_uri(image: np.ndarray) -> str:
    """A picture, uint8 `[H, W, 3]`, as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="jpeg", quality=90, subsampling=0)  # thin outlines keep their colour
    return _data_uri(buffer.getvalue(), "jpeg")


def label(name: str) -> str:
    """A name as a figure shows it: not too long, and never taken for a formula."""
    short = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
    return short.replace("$", r"\$")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()
