"""The model card: README.md of an exported folder, filled from the run. Its head is what the hub reads of a card.

Names, sources and licences come from files and users: in the text they are escaped, in the head they are YAML values.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from csat.export.facts import Facts, Measured, why_not_released
from csat.licences import is_unknown, licence_of, licences_of, strictest
from csat.prediction.answers import Answers
from csat.responses import Kind, ResponseSpec
from csat.tasks import Task
from csat.words import printable, without_folders

NAME = "README.md"
ONNX = "model.onnx"
PIPELINES = {
    Task.CLASSIFICATION: "image-classification",
    Task.SEGMENTATION: "image-segmentation",
    None: "image-feature-extraction",
}
PIPELINES[Task.NUCLEI] = PIPELINES[Task.SEGMENTATION]
# What licences are called here → the hub's id, where it has one.
HUB_LICENCES = (
    (r"apache[- ]2\.0", "apache-2.0"),
    (r"cc[- ]by[- ]nc[- ]nd[- ]4\.0", "cc-by-nc-nd-4.0"),
    (r"cc[- ]by[- ]nc[- ]sa[- ]4\.0", "cc-by-nc-sa-4.0"),
    (r"cc[- ]by[- ]nc[- ]4\.0", "cc-by-nc-4.0"),
    (r"cc[- ]by[- ]sa[- ]4\.0", "cc-by-sa-4.0"),
    (r"cc[- ]by[- ]4\.0", "cc-by-4.0"),
    (r"cc0", "cc0-1.0"),
    (r"mit", "mit"),
)
OTHER = {"license": "other", "license_name": "see-the-card", "license_link": f"./{NAME}"}
REPOSITORY = re.compile(r"^(?:hf[-_]hub:)?([\w.-]+/[\w.-]+)$")
RUN = "run"  # the name of a teacher that is a run, or a model that comes with the package; its source begins with which
MOST_METRICS = 24  # rows of a table of figures


def write_card(answers: Answers, facts: Facts, measured: Measured) -> str:
    """The card's text."""
    parts = [_head(answers, facts, measured), f"# {_plain(answers.about.name)}", _summary(answers, facts), _licence(facts)]
    parts += [_answers(answers), _tiles(answers, facts), _use(answers, facts, measured), _training(facts)]
    parts += [_figures(facts), _judged(answers, facts), _cost(answers, measured), _files(measured), LIMITS]
    return "\n\n".join(part for part in parts if part) + "\n"


LIMITS = """## Intended use

For research. This is no medical device, and nothing that it says is a diagnosis. It was measured on the data that are named
above: stain, scanner, organ and disease of your own slides may be others. Compare it with labels of yours before you rely on
it. Where it imitates a teacher, it repeats that teacher's mistakes."""


def _head(answers: Answers, facts: Facts, measured: Measured) -> str:
    opens_in = (["timm"] if "pretrained_cfg" in facts.config else []) + (["onnx"] if ONNX in measured.files else [])
    head: dict[str, Any] = _hub_licence(facts.metadata)
    head |= {"library_name": opens_in[0]} if opens_in else {}
    head["pipeline_tag"] = PIPELINES[answers.task]
    head["tags"] = ["pathology", "histology", "whole-slide-images", "knowledge-distillation", *opens_in]
    found = [REPOSITORY.match(str(each.get("source", ""))) for each in facts.teachers.values()]
    if bases := [each[1] for each in found if each]:
        head["base_model"] = bases[0] if len(facts.teachers) == 1 else bases
    if facts.data:
        head["datasets"] = [str(each["name"]) for each in facts.data.get("sets") or [facts.data]]
    if results := _results(answers, facts):
        head["model-index"] = [{"name": answers.about.name, "results": results}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip()}\n---"


def _hub_licence(metadata: Mapping[str, Any]) -> dict[str, str]:
    licences = licences_of(metadata)
    found = {name for licence in licences for pattern, name in HUB_LICENCES if re.match(pattern, licence, re.IGNORECASE)}
    if len(licences) == 1 and len(found) == 1:
        return {"license": found.pop()}
    if len(licences) > 1 and (decides := strictest(licences)):
        return _hub_licence({"licence": decides})
    if not licences or all(is_unknown(licence) for licence in licences):
        return {"license": "unknown"}
    return OTHER


def _results(answers: Answers, facts: Facts) -> list[dict[str, Any]]:
    own, judged = facts.data.get("name"), facts.judged
    found = [(own or "held-out tiles", own or "own", _scores(facts))]
    if judged:
        names = ", ".join(judged["data"])
        found.append((names, names, _overall(judged["figures"][judged["own"]])))
    return [
        {
            "task": {"type": PIPELINES[answers.task]},
            "dataset": {"name": str(name), "type": str(kind)},
            "metrics": [
                {"type": metric, "value": round(each["value"], 4), "name": metric} for metric, each in figures.items()
            ],
        }
        for name, kind, figures in found
        if figures
    ]


def _scores(facts: Facts) -> dict[str, dict[str, float]]:
    """Figures with intervals: of the test images, or of a pretraining's held-out tiles."""
    figures = facts.evaluation.get("test") or ({} if "task" in facts.evaluation else facts.evaluation)
    return _overall(figures)


def _overall(figures: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Those with an interval, of all classes together."""
    kept = {
        name: figure for name, figure in figures.items() if isinstance(figure, dict) and "low" in figure and "/" not in name
    }
    return dict(list(kept.items())[:MOST_METRICS])


def _summary(answers: Answers, facts: Facts) -> str:
    teachers, what = list(facts.teachers), facts.config.get("backbone") or facts.config.get("model", "model")
    does = {
        Task.NUCLEI: "finds nuclei" + (f" and tells {_listed(answers.classes)} apart" if answers.classes else ""),
        Task.SEGMENTATION: f"tells {_listed(answers.classes)} apart, pixel by pixel",
        Task.CLASSIFICATION: f"tells {_listed(answers.classes)} apart, tile by tile",
        None: "describes tiles by " + _listed([spec.name for spec in answers.specs]),
    }[answers.task]
    learned = ""
    if facts.metadata.get("task"):
        learned = (
            f" It was trained on labels of {_plain(facts.data.get('name') or facts.metadata.get('data', 'a labelled set'))}."
        )
    if len(teachers) == 1:
        learned += f" It was distilled from the teacher {_plain(_called('', facts.teacher))}."
    elif teachers:
        named = [_called(name, each) for name, each in facts.teachers.items()]
        learned += f" It was distilled from the teachers {_listed(named)}."
    return f"A {_code(what)} for H&E histology that {does}.{learned}"


def _licence(facts: Facts) -> str:
    reasons = why_not_released(facts.metadata)
    rows = [
        f"- Teacher {_plain(_called(name, each))}: {_plain(each.get('licence') or 'unknown')}"
        for name, each in facts.teachers.items()
    ]
    if own := facts.metadata.get("licence"):
        rows.append(f"- Images{' and labels' if facts.metadata.get('task') else ''}: {_plain(own)}")
    started = facts.metadata.get("started_from")
    if isinstance(started, Mapping):
        rows.append(f"- The run that its weights started from: {_plain(licence_of(started))}")
    elif started and started != "scratch":
        rows.append(f"- Its weights started from: {_plain(started)}")
    lines = ["## Licence", "", "Licences follow a model from its teacher and its images:", "", *rows]
    if len(licences := licences_of(facts.metadata)) > 1:
        decides = strictest(licences)
        told = f"The strictest of them decides: {_plain(decides)}." if decides else "None of them covers the others: all hold."
        lines += ["", told]
    if reasons:
        lines += ["", *(f"> **Do not release without reading this: {_plain(reason)}.**" for reason in reasons)]
    if not rows or any(is_unknown(licence) for licence in licences_of(facts.metadata) or [""]):
        lines += ["", "> **Not every licence is known: find out before you pass this model on.**"]
    return "\n".join(lines)


def _answers(answers: Answers) -> str:
    lines = ["## What it says", "", "| output | shape per tile | values |", "|---|---|---|"]
    for spec in answers.specs:
        shape = " x ".join(map(str, spec.shape(answers.tile_px)))
        crop = f"; {spec.crop_px} px on each side are left out" if spec.crop_px else ""
        names = f": {_listed(spec.channel_names)}" if spec.channel_names else ""
        lines.append(f"| {_code(spec.name)} | {shape} | {_meaning(spec)}{names}{crop} |")
    return "\n".join(lines)


def _meaning(spec: ResponseSpec) -> str:
    if spec.kind == Kind.PROBABILITY:
        return "probability" if spec.channels == 1 else "probabilities, which sum to 1 over the channels"
    if spec.name == "hv":
        return "horizontal and vertical distance to the centre of the nucleus, -1 to 1"
    return {Kind.REGRESSION: "numbers", Kind.FEATURES: "an embedding", Kind.ATTENTION: "attention maps"}[spec.kind]


def _tiles(answers: Answers, facts: Facts) -> str:
    stretched = facts.metadata.get("fit") == "resize"
    mpp = f"at **{answers.mpp:g} um/px**" if answers.mpp else "of any resolution, as it was trained"
    what = "Whole images, stretched to" if stretched else "Square tiles of"
    return (
        f"## What it sees\n\n{what} **{answers.tile_px} px** {mpp}, RGB. Another resolution changes what it says. Resize "
        "nothing after a tile has been read at this one."
    )


def _use(answers: Answers, facts: Facts, measured: Measured) -> str:
    architecture, parts = facts.config.get("architecture"), ["## Use"]
    parts.append(ONNX_EXAMPLE.format(mpp=answers.mpp, tile_px=answers.tile_px) if ONNX in measured.files else "")
    if "pretrained_cfg" in facts.config:
        source = next((name[:-3] for name in measured.files if name.endswith("_timm.py")), None)
        first = f"import {source}  # the file in this folder: timm does not know the architecture\n" if source else ""
        has_classes = facts.config["num_classes"] > 0
        says = "logits, in the order of label_names" if has_classes else "features; the decoder and the heads are not timm's"
        size = facts.config["pretrained_cfg"]["input_size"][1]
        shrink = answers.tile_px // size
        note = (
            f"\nIt sees a tile of {answers.tile_px} px at {size} px: shrink it {shrink} times by the mean.\n"
            if shrink > 1
            else ""
        )
        parts.append(TIMM_EXAMPLE.format(first=first, says=says, note=note))
    elif not architecture:
        file = "the ONNX file, or " if ONNX in measured.files else ""
        parts.append(f"This network is not in timm: use {file}this project (`csat.load`).")
    if "torchscript_model.pt" in measured.files:
        parts.append("QuPath and WSInfer: this folder is a WSInfer bundle (`torchscript_model.pt`, `config.json`).")
    parts.append(OWN_EXAMPLE)
    return "\n\n".join(part for part in parts if part)


ONNX_EXAMPLE = """```python
import json, numpy as np, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
about = session.get_modelmeta().custom_metadata_map  # classes, mean, std, mpp, tile_px, licence, sha256, responses
mean, std = (np.array(json.loads(about[name]), np.float32).reshape(1, 3, 1, 1) for name in ("mean", "std"))
images = (tiles.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / std  # tiles: uint8 [N, {tile_px}, {tile_px}, 3]
said = dict(zip([output.name for output in session.get_outputs()], session.run(None, {{"images": images}})))
```"""
TIMM_EXAMPLE = """```python
import timm
{first}
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or hf-hub:OWNER/NAME
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))  # crops nothing: crop_pct is 1
# model(transform(image)[None]): {says}
```{note}"""
OWN_EXAMPLE = """```python
import csat

model = csat.load("FOLDER")
said = model(tile)  # uint8 [H, W, 3]; the transform is in it
```"""


def _training(facts: Facts) -> str:
    metadata, lines = facts.metadata, []
    if facts.slides:
        slides = facts.slides["slides"]
        lines.append(f"- Slides: {slides.get('tiled', '?'):,} used, {slides.get('quarantined', 0):,} not usable")
        lines.append(f"- Tiles: {facts.slides['tiles']:,}; shown while training: {metadata.get('tiles_trained', 0):,}")
    if metadata.get("method"):
        lines.append(f"- Method: {_plain(metadata['method'])}")
    for name, teacher in facts.teachers.items():
        lines.append(
            f"- Teacher: {_plain(_called(name, teacher))}, from {_place(teacher.get('source') or 'unknown')}, SHA-256 "
            f"`{_plain(teacher.get('weights_sha256', ''))[:16]}…`"
        )
    if facts.data:
        parts = facts.data.get("parts") or {}
        counts = ", ".join(f"{_plain(name)} {part['samples']:,}" for name, part in parts.items())
        lines += [
            f"- Labelled data: {_plain(facts.data.get('name'))}: {counts}",
            f"- Source: {_place(facts.data.get('source'))}",
        ]
        if facts.data.get("note"):
            lines.append(f"- Note: {_plain(facts.data['note'])}")
    return "\n".join(["## Training", "", *lines]) if lines else ""


def _figures(facts: Facts) -> str:
    scores = _scores(facts)
    if not scores:
        return "## Figures\n\nThis run has measured none."
    is_labelled = "test" in facts.evaluation
    what = "On test images that training has not seen" if is_labelled else "Agreement with the teacher on held-out tiles"
    lines = ["## Figures", "", f"{what}, with 95% intervals (bootstrap over slides or patients):", ""]
    lines += ["| figure | value | interval | |", "|---|---|---|---|"]
    for name, figure in scores.items():
        over = ", ".join(f"{figure[key]:,} {key}" for key in ("tiles", "groups", "samples") if key in figure)
        lines.append(f"| {_plain(name)} | {figure['value']:.3f} | {figure['low']:.3f} to {figure['high']:.3f} | {over} |")
    return "\n".join(lines)


def _judged(answers: Answers, facts: Facts) -> str:
    """On other images, beside whatever else was judged on them."""
    judged = facts.judged
    if not judged:
        return ""
    own, data = judged["own"], ", ".join(map(_plain, judged["data"]))
    others = [name for name in judged["figures"] if name != own]
    seen = "of which it is not known to have seen any" if judged["is_unseen"] else "some of which it may have seen"
    part = "" if judged["part"] == "all" else f" ({_plain(judged['part'])})"
    lines = [f"## On other images: {data}{part}", ""]
    lines += [
        f"{judged['samples']:,} images of {judged['groups']:,} groups, {seen}; 95% intervals (bootstrap over groups).",
        "",
    ]
    lines += [f"| figure | {_plain(answers.about.name)} | {''.join(f'{_plain(name)} | ' for name in others)}"]
    lines += ["|---|" + "---|" * (1 + len(others))]
    for metric in _overall(judged["figures"][own]):
        cells = []
        for name in (own, *others):
            figure = judged["figures"][name].get(metric)
            cells.append(f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})" if figure else "")
        lines.append(f"| {_plain(metric)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cost(answers: Answers, measured: Measured) -> str:
    cost = measured.cost
    lines = ["## Cost", "", f"- {cost['params'] / 1e6:.2f} M parameters, {cost['macs'] / 1e9:.3g} GMAC for a tile"]
    answered_px = answers.tile_px - 2 * max(spec.crop_px for spec in answers.specs)
    for name, speed in measured.speeds.items():
        area = f", {1 / (speed * (answered_px * answers.mpp / 1000) ** 2):.2g} s/mm²" if answers.mpp else ""
        lines.append(f"- {_plain(name)}: {speed:.1f} tiles/s{area}")
    return "\n".join([*lines, f"- Measured on {_plain(measured.machine)}"])


def _files(measured: Measured) -> str:
    lines = ["## Files", "", f"Tried with real tiles: {_plain(measured.tiles)}.", "", "| file | |", "|---|---|"]
    lines += [f"| {_code(name)} | {_plain(what)} |" for name, what in measured.files.items()]
    lines += [f"| {_code(name)} | not here: {_plain(why)} |" for name, why in measured.left_out.items()]
    return "\n".join(lines)


def _called(name: str, teacher: Mapping[str, Any]) -> str:
    """A teacher as a person knows it: of several with its name in the run; one that was trained here by its own run."""
    own, source = str(teacher.get("name")), str(teacher.get("source") or "")
    if own == RUN and ": " in source:
        own = without_folders(source.partition(": ")[0])
    return f"{name} ({own})" if name else own


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(_plain, names)) or "nothing by name"


def _place(value: Any) -> str:
    """A source in words; of a path of the machine that trained only the last part."""
    return _plain(without_folders(printable(value)))


def _code(value: Any) -> str:
    """Text between backticks, in a table too."""
    return f"`{re.sub(r'[`|]', '', ' '.join(printable(value).split()))}`"


def _plain(value: Any) -> str:
    """Text in one line that is only text in Markdown, a table included."""
    text = " ".join(printable(value).split())
    return re.sub(r"([\\|<>`*_\[\]#])", r"\\\1", text)
