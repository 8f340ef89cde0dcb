"""Both sides of the one door: what holds for a folder must hold for a bucket."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csat.errors import StorageError
from csat.storage import files


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """The same tests over a folder and over a bucket."""
    return str(tmp_path / "root") if request.param == "local" else f"{request.getfixturevalue('s3')}/root"


def test_what_is_written_is_read_listed_measured_and_deleted(root):
    names = ["b.txt", "a/x y+z#1.txt", "a/deep/c.txt", ".hidden", "a/.ignored/d.txt"]
    for name in names:
        files.write_bytes(files.join(root, name), name.encode())
    assert files.read_bytes(files.join(root, names[1])) == names[1].encode()
    assert files.read_bytes(files.join(root, "b.txt"), start=1, stop=3) == b".t"
    with files.open_input(files.join(root, "b.txt")) as file:
        file.seek(2)
        assert file.read() == b"txt"
    assert files.size(files.join(root, "b.txt")) == 5
    assert files.list_dir(root) == [files.join(root, "a"), files.join(root, "b.txt")]
    assert files.list_files(root) == [files.join(root, name) for name in ("a/deep/c.txt", "a/x y+z#1.txt", "b.txt")]
    sizes = {uri: about.size_bytes for uri, about in files.list_info(files.join(root, "a")).items()}
    assert sizes == {files.join(root, "a/deep/c.txt"): 12, files.join(root, "a/x y+z#1.txt"): 13}
    assert files.glob(files.join(root, "**/*.txt"))[0] == files.join(root, "a/deep/c.txt")
    assert files.glob(files.join(root, "?.txt")) == [files.join(root, "b.txt")]
    assert files.exists(files.join(root, "a")) and files.is_dir(files.join(root, "a"))
    files.delete(files.join(root, "a"))
    files.delete(files.join(root, "b.txt"))
    files.delete(files.join(root, "never-was"))
    assert files.list_files(root) == [] and not files.exists(files.join(root, "a"))


def test_a_change_of_content_changes_the_version(root):
    uri = files.join(root, "x")
    files.write_bytes(uri, b"one")
    before = files.info(uri)
    files.write_bytes(uri, b"two")
    assert files.info(uri).size_bytes == before.size_bytes and files.info(uri).version != before.version
    assert files.info(files.join(root, "y")) is None and files.info(root) is None


def test_a_write_that_fails_midway_leaves_what_was_there(root):
    uri = files.join(root, "state.pt")
    files.write_bytes(uri, b"good")
    with pytest.raises(RuntimeError, match="killed"), files.open_output(uri) as file:
        file.write(b"half" * 1000)
        raise RuntimeError("killed")
    assert files.read_bytes(uri) == b"good" and files.list_dir(root) == [uri]
    if files.is_local(root):
        assert os.listdir(root) == ["state.pt"], "no temporary file is left behind"


def test_an_overwrite_replaces_the_whole_file_and_keeps_usual_rights(root):
    uri = files.join(root, "x")
    files.write_bytes(uri, b"longer than the next")
    with files.open_output(uri) as file:
        file.write(b"short")
    assert files.read_bytes(uri) == b"short"
    if files.is_local(root):
        reference = Path(root) / "reference"
        reference.touch()
        assert Path(uri).stat().st_mode == reference.stat().st_mode


def test_a_large_upload_arrives_whole(s3):
    data = os.urandom(2**20) * 60  # beyond one part
    with files.open_output(f"{s3}/large") as file:
        file.write(data)
    assert files.size(f"{s3}/large") == len(data)
    assert files.read_bytes(f"{s3}/large", start=len(data) - 2**20) == data[-(2**20) :]


def test_what_another_client_wrote_is_seen_at_once(s3):
    import boto3

    assert files.list_dir(s3) == []
    boto3.client("s3").put_object(Bucket=s3[5:], Key="late.txt", Body=b"x")
    assert files.list_dir(s3) == [f"{s3}/late.txt"]


def test_arrow_reads_what_storage_writes_and_the_reverse(root):
    store, path = files.arrow_filesystem(files.join(root, "part one.parquet"))
    files.make_dir(root)
    pq.write_table(pa.table({"x": [1, 2]}), path, filesystem=store)
    with files.open_input(files.join(root, "part one.parquet")) as file:
        assert pq.read_table(file).column("x").to_pylist() == [1, 2]
    files.write_bytes(files.join(root, "raw"), b"bytes")
    store, path = files.arrow_filesystem(files.join(root, "raw"))
    assert store.open_input_file(path).read() == b"bytes"


def test_check_writable_writes_nothing_that_stays(root):
    files.check_writable(root)
    assert files.list_files(root) == []


def test_a_place_that_cannot_be_written_says_so(tmp_path, s3):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*file/run.*NotADirectory|cannot write .*file/run.*FileExists"):
        files.check_writable(str(tmp_path / "file" / "run"))
    with pytest.raises(StorageError, match="cannot write s3://no-such-bucket-here"):
        files.check_writable("s3://no-such-bucket-here/run")


def test_missing_files_are_named(root):
    for action in (files.read_bytes, files.size):
        with pytest.raises(StorageError, match="no-such"):
            action(files.join(root, "no-such"))
    assert files.list_dir(files.join(root, "no-such")) == [] == files.list_files(files.join(root, "no-such"))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://host/slide.svs", "scheme http:// is not supported; use a local path or one of file://, s3://, gs://"),
        ("s4://bucket/a", "scheme s4:// is not supported"),
        ("s3:/bucket/a", "write s3://bucket/a"),
        ("s3://", "names no bucket"),
    ],
)
def test_wrong_uris_say_what_to_write(uri, message):
    with pytest.raises(StorageError, match=message):
        files.exists(uri)


def test_a_store_whose_package_is_missing_says_what_to_install(monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("no gcsfs")

    monkeypatch.setattr(files.fsspec, "filesystem", missing)
    with pytest.raises(StorageError, match="pip install gcsfs"):
        files.list_dir("gs://bucket/x")


def test_one_spelling_per_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert files.normalise("a/../b/") == f"{tmp_path}/b" == files.normalise(f"file://{tmp_path}/b")
    assert files.normalise("~/x") == "/home/someone/x"
    assert files.normalise("file:///a%20b") == "/a b"
    assert files.normalise("S3://Bucket/Key/") == "s3://Bucket/Key"
    assert files.parent("s3://b/a/x.svs") == "s3://b/a" and files.base_name("s3://b/a/x.svs") == "x.svs"
    assert files.join("s3://b/a", "/abs/x") == "/abs/x" and files.join("/a", "s3://b/x") == "s3://b/x"
    assert files.join("/", "x") == "/x" and files.join("s3://b/", "x", "y") == "s3://b/x/y"


@given(st.lists(st.text(alphabet="abcXYZ019 _-.+#%", min_size=1, max_size=8), min_size=1, max_size=4))
def test_joined_names_come_apart_again(parts):
    parts = [part for part in parts if part not in (".", "..")]
    uri = files.join("s3://bucket", *parts)
    assert uri.removeprefix("s3://bucket").split("/")[1:] == parts
    if parts:
        assert files.base_name(uri) == parts[-1] and files.join(files.parent(uri), parts[-1]) == uri


def test_linked_folders_are_listed_once_even_in_a_loop(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.svs").touch()
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.svs").touch()
    (tmp_path / "real" / "linked").symlink_to(tmp_path / "other")
    assert {files.base_name(name) for name in files.list_files(str(tmp_path / "real"))} == {"a.svs", "b.svs"}


def test_what_a_server_an_archive_or_an_editor_leaves_is_not_listed(root):
    data = ["a/1.png", "a/#1/2.png", "b@home.png", "eaDir/3.png"]
    left = [
        *(
            "a/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
            "a/@eaDir/2.png/SYNOPHOTO_THUMB_M.jpg",
            "#recycle/x.png",
            "$RECYCLE.BIN/x.png",
        ),
        *(
            "__MACOSX/a/1.png",
            "a/.ipynb_checkpoints/1.png",
            ".git/x.png",
            "lost+found/x.png",
            "System Volume Information/x.png",
        ),
        *("a/._1.png", "a/Thumbs.db", ".DS_Store", "~$list.xlsx"),
    ]
    for name in (*data, *left):
        files.write_bytes(files.join(root, name), b"x")
    found = files.scan(root)
    assert found.files == sorted(files.join(root, name) for name in data) == files.list_files(root)
    assert found.leftovers == {
        **{name: 1 for name in ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", ".ipynb_checkpoints", ".git", "lost+found")},
        **{name: 1 for name in ("System Volume Information", "._1.png", "Thumbs.db", ".DS_Store", "~$list.xlsx")},
    }
    assert [files.base_name(name) for name in files.list_dir(root)] == ["a", "b@home.png", "eaDir"]
    assert list(files.list_info(root)) == found.files
    assert files.glob(files.join(root, "**/*.png")) == found.files
    assert len(files.list_files(files.join(root, "a/@eaDir"))) == 2, "what the user names is what the user wants"


def test_a_folder_of_leftovers_is_not_entered(tmp_path, monkeypatch):
    """Snapshots hold a hundred times the data; `lost+found` may not be read by anybody but root."""
    for name in ("lost+found", "sub/.snapshot/deep"):
        (tmp_path / name).mkdir(parents=True)
    entered, walk = [], os.walk

    def watched(top, **options):
        for here, folders, paths in walk(top, **options):
            entered.append(os.path.relpath(here, top))
            yield here, folders, paths

    monkeypatch.setattr(files.os, "walk", watched)
    assert files.scan(str(tmp_path)).leftovers == {"lost+found": 1, ".snapshot": 1}
    assert entered == [".", "sub"]


def test_a_name_that_is_not_utf8_is_spelled_and_opened(tmp_path):
    folder = os.fsencode(tmp_path) + b"/Gew\xe4sser \xc3\xa4"  # Latin-1 and UTF-8 in one name
    os.makedirs(folder)
    for name in (b"Pr\xe4parat.svs", b"b\\xe4.svs", b"c\\x.svs", "\u00e4.svs".encode()):  # one looks as if it were spelled
        (Path(os.fsdecode(folder)) / os.fsdecode(name)).write_bytes(name)
    found = files.list_files(str(tmp_path))
    assert sorted(map(files.base_name, found)) == sorted([r"Pr\xe4parat.svs", r"b\x5cxe4.svs", r"c\x.svs", "\u00e4.svs"])
    for uri in found:
        assert uri.encode() and files.normalise(uri) == uri == files.normalise(files.local_path(uri).as_uri())
        assert uri.startswith(f"{tmp_path}/Gew\\xe4sser \u00e4/") and files.parent(uri) == files.list_dir(str(tmp_path))[0]
        with files.open_input(uri) as file, files.open_native(uri) as native:
            assert file.read() == native.read() == files.read_bytes(uri) == os.fsencode(files.local_path(uri).name)
    assert files.glob(f"{tmp_path}/*/Pr*") == [uri for uri in found if "Pr" in uri]
    with pytest.raises(StorageError, match="a path that is UTF-8"):
        files.arrow_filesystem(found[0])
