"""The model card: what the hub reads of it, what a person is warned of, and that a name in it is only a name."""

import pytest
import yaml
from huggingface_hub import ModelCard

from csat.errors import ConfigError
from csat.export.card import write_card
from csat.export.facts import Facts, Measured, read_facts, why_not_released
from csat.model.files import read_model_config, save_model
from csat.runs.folder import RunFolder
from tests.csat.export.models import LABEL, METADATA, NUCLEI, answers_of, student

UNI = {
    "name": "timm",
    "source": "hf-hub:MahmoodLab/UNI2-h",
    "licence": "CC BY-NC-ND 4.0; verify upstream",
    "weights_sha256": "12" * 32,
}
FIGURE = {"value": 0.8123, "low": 0.7, "high": 0.9, "tiles": 40, "groups": 3}
MEASURED = Measured(
    cost={"params": 3_000_000, "macs": 1_090_000_000},
    speeds={"onnxruntime, batch of 8": 31.25},
    machine="a CPU, 2 threads",
    files={"model.onnx": "for onnxruntime", "csat_timm.py": "the network", "model.safetensors": "for timm: the backbone"},
    left_out={"model.int8.onnx": "it does not pay: 0.91 times as fast"},
    tiles="32, of slides",
)


def card(tmp_path, responses=NUCLEI, *, metadata=METADATA, judged=None, **files) -> str:
    """Of a run folder with these JSON files."""
    answers = answers_of(student(responses))
    save_model(answers.model, str(tmp_path / "exported"), metadata)
    for name, content in files.items():
        RunFolder(str(tmp_path)).write_json(f"{name}.json", content)
    facts = read_facts(str(tmp_path), read_model_config(str(tmp_path / "exported")), judged=judged)
    return write_card(answers, facts, MEASURED)


def test_a_distilled_student_tells_its_teacher_fidelity_and_cost(tmp_path):
    learned = {"tile_px": 64, "mpp": 0.5, "method": "rckd", "tiles_trained": 5000, "teacher": UNI}
    text = card(tmp_path, metadata=learned, teacher=UNI, evaluation={"np.dice": FIGURE})
    assert "distilled from the teacher timm" in text and "finds nuclei and tells one, two apart" in text
    assert "| np.dice | 0.812 | 0.700 to 0.900 | 40 tiles, 3 groups |" in text and "Agreement with the teacher" in text
    assert "3.00 M parameters, 1.09 GMAC" in text and "onnxruntime, batch of 8: 31.2 tiles/s" in text
    assert "For research" in text and "**0.5 um/px**" in text
    assert "not here: it does not pay: 0.91 times as fast" in text


@pytest.mark.parametrize("place", ["hovernet-nuclei", "/home/someone/runs/hovernet-nuclei"])
def test_a_teacher_that_is_a_run_is_called_as_the_run(tmp_path, place):
    teacher = {"name": "run", "source": f"{place}: hovernet trained on a, b", "licence": "MIT", "weights_sha256": "12" * 32}
    text = card(tmp_path, metadata={"tile_px": 64, "mpp": 0.5, "teacher": teacher}, teacher=teacher)
    assert "distilled from the teacher hovernet-nuclei." in text and "- Teacher hovernet-nuclei: MIT" in text
    assert "/home" not in text


def test_what_the_slides_are_is_said_where_the_run_does_not_know_it(tmp_path):
    teacher = {"name": "stain", "source": "settings", "licence": "Apache-2.0", "weights_sha256": "12" * 32}
    config = {"metadata": {"tile_px": 64, "mpp": 0.5, "teacher": teacher}}
    facts = read_facts(str(tmp_path), config, licence="slides of ours: CC BY-NC 4.0")
    assert facts.metadata["licence"] == "slides of ours: CC BY-NC 4.0" and "licence" not in config["metadata"]
    assert why_not_released(facts.metadata) == ["slides of ours: CC BY-NC 4.0 forbids commercial use"]
    text = write_card(answers_of(student(NUCLEI)), facts, MEASURED)
    assert "- Images: slides of ours: CC BY-NC 4.0" in text
    with pytest.raises(ConfigError, match="the run knows that of its images: MIT. Leave licence out"):
        read_facts(str(tmp_path), {"metadata": {"licence": "MIT"}}, licence="CC0")


@pytest.fixture
def judged(tmp_path):
    """An evaluation of the model in `tmp_path`, and of a teacher, on other images."""
    folder = RunFolder(str(tmp_path / "judged"))
    own, other = ({"dice": {**FIGURE, "value": value}, "pq/one": FIGURE} for value in (0.75, 0.6))
    groups = {
        "mine": {"figures": own, "runs": [{"uri": str(tmp_path)}]},
        "stain|x": {"figures": other, "runs": [{"uri": "stain"}]},
    }
    folder.write_json("evaluation.json", {"groups": groups, "part": "test", "samples": 14, "units": 7})
    folder.write_text("config.yaml", yaml.safe_dump({"data": {"sets": {"consep": {}}}, "accept_leakage": False}))
    return folder


def test_figures_on_other_images_stand_beside_those_of_others(tmp_path, judged):
    text = card(tmp_path, judged=judged.uri)
    assert (
        "## On other images: consep (test)" in text
        and "14 images of 7 groups, of which it is not known to have seen any" in text
    )
    assert r"| stain\|x |" in text and "| dice | 0.750 (0.700 to 0.900) | 0.600 (0.700 to 0.900) |" in text
    assert "pq/one" not in text
    (result,) = ModelCard(text).data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("consep", "dice", 0.75)
    assert "onnxruntime, batch of 8: 31.2 tiles/s, 47 s/mm²" in text, "52 of 64 px at 0.5 um/px are 0.000676 mm²"
    judged.write_text("config.yaml", yaml.safe_dump({"data": {"sets": {"consep": {}}}, "accept_leakage": True}))
    assert "some of which it may have seen" in card(tmp_path, judged=judged.uri)


def test_an_evaluation_of_something_else_is_refused(tmp_path, judged):
    with pytest.raises(ConfigError, match="no finished run of evaluate.py on other images"):
        card(tmp_path, judged=str(tmp_path / "nothing"))
    found = judged.read_json("evaluation.json")
    found["groups"]["mine"]["runs"].append({"uri": "another seed"})
    judged.write_json("evaluation.json", found)
    with pytest.raises(ConfigError, match=r"has not judged .*: it has mine: .*another seed"):
        card(tmp_path, judged=judged.uri)


def test_the_hub_understands_its_head(tmp_path):
    metrics = {"accuracy": FIGURE, "f1/tumour": FIGURE, "n": 3}
    data = {"name": "crc", "source": "Kather 2016", "parts": {"test": {"samples": 9}}, "note": ""}
    text = card(
        tmp_path,
        LABEL,
        metadata={**METADATA, "task": "classification"},
        evaluation={"task": "classification", "test": metrics},
        data=data,
    )
    parsed = ModelCard(text)
    assert parsed.data.license == "cc-by-4.0" and parsed.data.library_name == "timm"
    assert parsed.data.pipeline_tag == "image-classification" and parsed.data.datasets == ["crc"]
    (result,) = parsed.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.8123, "crc")


@pytest.mark.parametrize(
    ("licence", "head"),
    [
        ("CC BY-NC-ND 4.0", "cc-by-nc-nd-4.0"),
        ("Apache-2.0", "apache-2.0"),
        ("not stated", "unknown"),
        ("unknown", "unknown"),
        ("our own terms", "other"),
    ],
)
def test_licences_of_the_head(tmp_path, licence, head):
    text = card(tmp_path, metadata={**METADATA, "licence": licence})
    data = yaml.safe_load(text.split("---")[1])
    assert data["license"] == head
    assert ("license_link" in data) == (head == "other")
    assert ("Not every licence is known" in text) == (head == "unknown")


def test_what_a_licence_forbids_marks_the_card(tmp_path):
    metadata = {"tile_px": 64, "mpp": 0.5, "teacher": UNI}
    assert len(why_not_released(metadata)) == 2 and not why_not_released(METADATA)
    text = card(tmp_path, metadata=metadata, teacher=UNI)
    assert "Do not release without reading this: CC BY-NC-ND 4.0; verify upstream forbids passing on" in text
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "MahmoodLab/UNI2-h"


@pytest.mark.parametrize("knows_the_run", [True, False])
def test_all_of_several_teachers_are_named_and_the_strictest_licence_decides(tmp_path, knows_the_run):
    """By teacher.json of the run; by the metadata of an exported folder alone."""
    hovernet = {"name": "hovernet", "source": "/secret/a.tar", "licence": "CC BY-NC-SA 4.0", "weights_sha256": "34" * 32}
    timm = {"name": "timm", "source": "hf-hub:bioptimus/H-optimus-0", "licence": "Apache-2.0", "weights_sha256": "56" * 32}
    combined = {
        "name": "nuclei + tissue",
        "source": "…",
        "licence": "CC BY-NC-SA 4.0; Apache-2.0",
        "weights_sha256": "78" * 32,
    }
    metadata = {"tile_px": 64, "mpp": 0.5, "teacher": {**combined, "teachers": {"nuclei": hovernet, "tissue": timm}}}
    members = [{"name": "nuclei", "spec": hovernet, "shrink": 1}, {"name": "tissue", "spec": timm, "shrink": 2}]
    text = card(tmp_path, metadata=metadata, **({"teacher": {**combined, "members": members}} if knows_the_run else {}))
    assert "distilled from the teachers nuclei (hovernet), tissue (timm)" in text
    assert "- Teacher nuclei (hovernet): CC BY-NC-SA 4.0" in text and "- Teacher tissue (timm): Apache-2.0" in text
    assert "The strictest of them decides: CC BY-NC-SA 4.0." in text
    assert "Do not release without reading this: CC BY-NC-SA 4.0 forbids commercial use" in text
    assert "SHA-256 `3434343434343434…`" in text and "SHA-256 `5656565656565656…`" in text and "/secret" not in text
    head = yaml.safe_load(text.split("---")[1])
    assert (head["license"], head["base_model"]) == ("cc-by-nc-sa-4.0", ["bioptimus/H-optimus-0"])


def test_names_are_only_names(tmp_path):
    """A name from a file can neither end the head nor make a link, a table or a tag."""
    evil = "x](http://e)<script>\n---\n| a | `b`"
    data = {"name": evil, "source": "/home/me/secret/set", "parts": {evil: {"samples": 1}}, "note": evil}
    text = card(tmp_path, LABEL, metadata={**METADATA, "task": "classification", "licence": evil}, data=data)
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["datasets"] == [evil]
    assert "<script>" not in body.replace("\\<script\\>", "") and "](http" not in body.replace("\\](http", "")
    assert "/home/me" not in text and "secret" not in text and "Source: set" in text


def test_an_exported_folder_alone_has_a_card_too():
    answers = answers_of(student(NUCLEI))
    text = write_card(answers, Facts(config={"metadata": METADATA, "model": "unet"}), MEASURED)
    assert "This run has measured none" in text and "not in timm" in text
