"""Where a prediction's files lie, and which slides are done."""

from csat.prediction.layout import Layout, slide_names


def test_names_are_told_apart_and_are_fit_for_a_folder():
    slides = ["/a/one.svs", "s3://b/One.ndpi", "/a/two.svs", "/x/..", "/a/na/me?*.tif", "/a/\udce4.png", "/a/.svs"]
    names = slide_names(slides)
    assert len({name.casefold() for name in names}) == len(slides)
    assert names[2] == "two" and names[0].startswith("one-") and names[1].startswith("One-")
    assert not [name for name in names if set(name) & set("/?*\\:") or name in ("", ".", "..")]
    assert slide_names(slides[:1]) == ["one"] and slide_names(slides) == names
    assert max(map(len, slide_names(["/a/" + "x" * 300 + ".svs"]))) <= 120


def test_a_slide_is_done_once_it_is_marked(tmp_path):
    layout = Layout(str(tmp_path))
    assert layout.done() == set() and layout.records() == {}
    (tmp_path / "parts" / "000002").mkdir(parents=True)
    layout.mark_done(2, {"name": "two"})
    layout.mark_done(11, {"name": "eleven"})
    (tmp_path / "done" / ".000012.json.tmp").write_text("{}")
    (tmp_path / "done" / "notes.json").write_text("{}")
    assert layout.done() == {2, 11}
    assert layout.record(11) == {"name": "eleven"} and layout.record(3) is None
    assert layout.records() == {2: {"name": "two"}, 11: {"name": "eleven"}}
    assert not (tmp_path / "parts" / "000002").exists(), "its parts are of no use any more"
