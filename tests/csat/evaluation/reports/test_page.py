import base64
import io

import numpy as np
import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure
from PIL import Image

from csat.evaluation.reports import page


def decode(uri: str, kind: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == f"data:image/{kind};base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_a_picture_on_a_page():
    image = np.full((20, 30, 3), 128, np.uint8)
    assert np.abs(decode(page.image_uri(image), "jpeg").astype(int) - 128).max() <= 2
    assert decode(page.figure_uri(Figure(figsize=(2, 1))), "png").shape == (90, 180, 3)


def test_a_name_is_no_formula_and_not_too_long():
    assert page.label("a$x$") == r"a\$x\$"
    assert page.label("long name " * 10) == ("long name " * 10)[: page.LONGEST_LABEL - 1] + "…"
    figure = Figure()
    figure.subplots().set_title(page.label(r"class $\frac{$"))  # as a formula it would not parse
    page.figure_uri(figure)


def test_what_a_template_is_not_told_is_an_error():
    with pytest.raises(UndefinedError):
        page.render("pretraining.html")
