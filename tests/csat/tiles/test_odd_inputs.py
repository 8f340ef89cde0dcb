"""All odd inputs in one folder, from its listing to the pixels: every file and every tile is accounted for."""

from collections import Counter

from csat.columns import OK, STATUS
from csat.errors import SlideError
from csat.storage import files
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import ManifestConfig, fingerprint
from csat.tiles.manifest_writer import ManifestWriter
from csat.tiles.reader import TileReader
from csat.tiles.sources import list_slides
from csat.tiles.tiling import cut_slide
from csat.words import counted
from tests.csat.tiles.manifests import read
from tests.support.odd_inputs import MISFIT, MPP, PASSED_OVER, PATIENTS, TILE_PX, TILES, make_odd_inputs


def test_every_file_is_in_the_manifest_the_quarantine_or_the_line_that_counts_the_others(tmp_path, caplog):
    (tmp_path / "slides").mkdir()
    folder = make_odd_inputs(tmp_path / "slides")
    tiling = TilingConfig(mpp=MPP, tile_px=TILE_PX, source_mpp=MPP)
    with caplog.at_level("INFO"):
        slides = list_slides([str(folder)], source_mpp=MPP)
    lines = [record.message for record in caplog.records if record.name == "csat.tiles.sources"]
    assert lines == [f"folder '{folder}': passed over {counted(PASSED_OVER)}"]
    assert [files.base_name(row.slide) for row in slides] == sorted(TILES)
    assert len(list(folder.iterdir())) == len(TILES) + sum(PASSED_OVER.values())

    made_from = fingerprint(slides, tiling, ManifestConfig())
    writer = ManifestWriter(str(tmp_path / "manifest"), ManifestConfig(), made_from, tiling, slides)
    for row in slides:
        try:
            cut = cut_slide(row, tiling)
            writer.add(row, cut.tiles, cut.refused)
        except SlideError as error:
            writer.quarantine(row, error.reason, str(error))
    manifest = writer.close()
    rows = read(manifest)
    assert Counter(files.base_name(row["slide"]) for row in rows) == {name: count for name, count in TILES.items() if count}
    quarantine = manifest.quarantine().to_pylist()
    refused = {files.base_name(row["slide"]): row["reason"] for row in quarantine}
    assert refused == {name: "unreadable" for name, count in TILES.items() if not count} | {"two.parquet": "needs_upsampling"}
    assert sum(MISFIT in row["message"] for row in quarantine) == manifest.index["rows_quarantined"] == 1
    patients = {row["row"]: row["patient"] for row in rows if row["kind"] == "parquet"}
    assert patients == {row: patient and str(patient) for row, patient in enumerate(PATIENTS[:-1])}

    chunk = manifest.read_chunk(*manifest.locate(0))
    columns = {name: chunk[name].to_numpy(zero_copy_only=False) for name in chunk.column_names}
    assert set(TileReader(tile_px=TILE_PX)(columns)[STATUS].tolist()) == {OK}
