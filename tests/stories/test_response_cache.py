"""pretrain.py with a response cache: what is refused. What it does is in test_s3.py."""

import pytest

from tests.stories.test_resolution import SETTINGS as RESOLUTION
from tests.support.verbs import arguments
from workflows import pretrain


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{}", "in another view"),
        ('{"flips_and_rotations": false}', "in another colours"),
    ],
)
def test_views_that_differ_by_epoch_are_refused(slides, tmp_path, capsys, options, words):
    settings = {**RESOLUTION, "method__options": options, "cache__uri": tmp_path / "cache"}
    assert pretrain.main(arguments(slides, tmp_path / "run", **settings)) == 2
    message = capsys.readouterr().err
    assert words in message and "leave --cache.uri out" in message
    assert not (tmp_path / "cache").exists()
