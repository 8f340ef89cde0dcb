import pytest

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets.name_groups import check_pattern, describe, group_of, warn


def test_the_bracket_or_the_whole_match_is_the_group():
    assert group_of("tumor/p12_tile3.png", r"(p\d+)_", "folder") == "p12"
    assert group_of("tumor/p12_tile3.png", r"p\d+", "folder") == "p12"
    assert group_of("tumor/p12_tile3.png", r"(x)?p\d+", "folder") == "p12"  # a bracket that matched nothing
    assert group_of("p7/tile3.png", None, "folder") == "p7/tile3.png"


def test_the_folder_is_not_searched():
    with pytest.raises(DatasetError, match=r"data set 'folder': group_pattern 'p\\\\d' finds nothing in 'a.png' \(p7/a.png\)"):
        group_of("p7/a.png", r"p\d", "folder")


def test_a_pattern_that_is_none():
    check_pattern(None)
    with pytest.raises(ConfigError, match=r"group_pattern '\(p' is no regular expression: missing \)"):
        check_pattern("(p")


def test_what_is_said_of_groups():
    assert describe(None) == "image (no grouping known)" and "group_pattern" in warn(None)
    assert describe("p") == "file name by p" and warn("p") == ""
