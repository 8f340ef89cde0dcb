import pytest

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets.registry import load_sample, read_dataset
from tests.csat.labels.datasets.files import break_image, check_misfit, check_one_unreadable, check_set, only, picture, write

CLASSES = ("colon_aca", "colon_n", "lung_aca", "lung_n", "lung_scc")


@pytest.fixture
def lc25000(tmp_path):
    for seed, name in enumerate(CLASSES):
        organ = f"{name.split('_')[0]}_image_sets"
        for number in (1, 2):
            stem = f"{name.replace('_', '')}{number}"
            write(tmp_path / "lung_colon_image_set" / organ / name / f"{stem}.jpeg", picture(10 * seed + number))
    return tmp_path


def test_without_groups_it_leaks_and_says_so(lc25000):
    found = read_dataset("lc25000", str(lc25000))
    check_set(found, name="lc25000", classes=CLASSES, licence="not stated", mpp=None)
    assert [sample.label for sample in found.samples] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert all(sample.group == sample.key for sample in found.samples)
    assert found.info.group == "image (no grouping known)" and found.info.note.startswith("WITHOUT GROUPS THIS SET LEAKS")
    assert load_sample(only(found, "lungn2.jpeg")).image.shape == (20, 24, 3)


def test_one_organ(lc25000):
    found = read_dataset("lc25000", str(lc25000), options={"organ": "colon"})
    assert found.info.classes == ("colon_aca", "colon_n") and len(found.samples) == 4
    found = read_dataset("lc25000", str(lc25000 / "lung_colon_image_set/lung_image_sets"), options={"organ": "lung"})
    assert [sample.label for sample in found.samples] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ConfigError, match="organ is one of colon, lung, not 'liver'"):
        read_dataset("lc25000", str(lc25000), options={"organ": "liver"})


def test_the_groups_of_one_csv(lc25000):
    columns = "stem,filename,label,tissue,local_cluster_label,group_id"
    stems = [f"{name.replace('_', '')}{number}" for name in CLASSES for number in (1, 2)]
    rows = [f"{stem},{stem}.jpeg,x,x,0,{40 + place // 2}" for place, stem in enumerate(stems)]
    (lc25000 / "lc25000_image_groups.csv").write_text("\n".join([columns, *rows]))
    found = read_dataset("lc25000", str(lc25000))
    assert found.info.group == "source image" and "LEAKS" not in found.info.note
    assert only(found, "colonaca1.jpeg").group == only(found, "colonaca2.jpeg").group == "40"
    assert only(found, "lungscc2.jpeg").group == "44"
    elsewhere = lc25000 / "groups.csv"
    (lc25000 / "lc25000_image_groups.csv").rename(elsewhere)
    assert read_dataset("lc25000", str(lc25000), options={"groups": str(elsewhere)}).samples == found.samples
    elsewhere.write_text("\n".join([columns, *rows[:-1]]))
    with pytest.raises(DatasetError, match="has no group for .*lungscc2.jpeg, looked for 'lungscc2' among 9"):
        read_dataset("lc25000", str(lc25000), options={"groups": str(elsewhere)})


def test_the_groups_of_the_annotations(lc25000):
    for name in CLASSES:
        folder = lc25000 / "annotations" / name / "UNI" / "resize_only"
        folder.mkdir(parents=True)
        rows = [f"/some/where/{name}/{name.replace('_', '')}{number}.jpeg,{number % 2}" for number in (1, 2)]
        (folder / "final_clusters.csv").write_text("\n".join(["img_path,cluster_label", *rows]))
    found = read_dataset("lc25000", str(lc25000), options={"groups": str(lc25000 / "annotations")})
    assert only(found, "colonn1.jpeg").group == "colon_n/1" and only(found, "lungn1.jpeg").group == "lung_n/1"
    assert len({sample.group for sample in found.samples}) == 10
    with pytest.raises(DatasetError, match="looked for <class>/UNI/resize_only/final_clusters.csv"):
        read_dataset("lc25000", str(lc25000), options={"groups": str(lc25000 / "lung_colon_image_set")})
    (lc25000 / "groups.csv").write_text("name,cluster\na,1\n")
    with pytest.raises(DatasetError, match="looked for columns filename and group_id, .* its columns are: name, cluster"):
        read_dataset("lc25000", str(lc25000), options={"groups": str(lc25000 / "groups.csv")})


def test_a_folder_that_does_not_fit(tmp_path):
    write(tmp_path / "lung_aca" / "lungaca1.jpeg", picture(1))
    check_misfit("lc25000", tmp_path, "no images in colon_aca, colon_n, lung_n, lung_scc", "found lung_aca")


def test_a_corrupt_image_among_good_ones(lc25000):
    broken = lc25000 / "lung_colon_image_set" / "lung_image_sets" / "lung_n" / "lungn2.jpeg"
    break_image(broken)
    check_one_unreadable(read_dataset("lc25000", str(lc25000)), broken)
