"""Which licences stand behind a model, and what they forbid."""

import pytest

from csat.licences import forbids_commerce, forbids_derivatives, licence_of, licences_of, strictest
from teachers.hovernet import PUBLISHED
from teachers.pathology_encoders import ENCODERS


def test_licences_of_all_that_a_model_came_from_each_once():
    teacher = {"licence": "CC BY-NC-ND 4.0"}
    metadata = {"licence": "CC BY 4.0", "started_from": {"run": "a", "teacher": teacher}, "teacher": teacher}
    assert licence_of(metadata) == "CC BY 4.0; CC BY-NC-ND 4.0"
    assert licence_of({"started_from": "scratch", "teacher": None}) == "unknown"


def test_each_of_several_teachers_has_its_own():
    several = {"a": {"licence": "Apache-2.0"}, "b": {"licence": "CC BY-NC 4.0"}, "c": {"licence": "Apache-2.0"}}
    assert licences_of({"teacher": {"licence": "all in one", "teachers": several}}) == ["Apache-2.0", "CC BY-NC 4.0"]


@pytest.mark.parametrize(
    ("licences", "decides"),
    [
        (["Apache-2.0", "CC BY-NC-SA 4.0 (PanNuke), going by the file's name: verify"], 1),
        (["CC BY-NC-ND 4.0", "CC BY-NC 4.0", "MIT"], 0),
        (["Apache-2.0", "MIT"], 0),
        (["CC BY-NC-ND 4.0", "CC BY-SA 4.0"], None),  # neither covers the other
        (["Apache-2.0", "unknown"], None),
        (["Apache-2.0", "our own terms"], None),
        ([], None),
    ],
)
def test_the_strictest_decides(licences, decides):
    assert strictest(licences) == (None if decides is None else licences[decides])


@pytest.mark.parametrize(
    ("licence", "derivatives", "commerce"),
    [
        ("CC BY-NC-ND 4.0", True, True),
        ("cc-by-nc-nd-4.0", True, True),
        ("CC BY-NC-SA 4.0 (PanNuke), going by the file's name: verify", False, True),
        ("Apache-2.0", False, False),
        ("CC BY 4.0; Apache-2.0", False, False),
        ("unknown", False, False),
        ("none (random weights)", False, False),
    ],
)
def test_what_a_licence_forbids(licence, derivatives, commerce):
    assert (forbids_derivatives(licence), forbids_commerce(licence)) == (derivatives, commerce)


def test_what_is_known_of_teachers():
    """As the encoders' and HoVer-Net's own pages say."""
    assert {name for name, each in PUBLISHED.items() if forbids_commerce(each.licence)} == {"pannuke", "monusac", "kumar"}
    forbidden = {name.partition("/")[2] for name, encoder in ENCODERS.items() if forbids_derivatives(encoder.licence)}
    assert forbidden >= {"UNI", "UNI2-h", "Virchow2", "H-optimus-1"}
    assert not forbidden & {"H-optimus-0", "prov-gigapath", "Virchow"}
