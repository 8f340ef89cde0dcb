"""A finished run as files that open without this project: in timm, onnxruntime, WSInfer and QuPath, with a model card.

    python workflows/export.py --model runs/csat-nuclei --output exported/csat-nuclei
    python workflows/export.py --model runs/lung --output s3://bucket/models/lung --int8 true
    python workflows/export.py --model runs/lung --output exported/lung --push hf-hub:owner/name

Every file is tried on real tiles, the run's own or those of `tiles`, and written only if it says what the model says.

    model.safetensors, config.json   timm.create_model("local-dir:FOLDER", pretrained=True), and the hub's hf-hub:
    csat_timm.py                     the network, where timm does not have it
    model.onnx                       one file with a dynamic batch; what it needs to know stands in its metadata
    torchscript_model.pt             of a tile classifier: with config.json a WSInfer bundle, which QuPath opens
    README.md                        the model card: data, teacher, licences, figures with intervals, cost, limits
    student.safetensors              for csat.load and for every verb of this project
"""

import logging
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows.shell import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

from workflows.exporting.config import ExportConfig
from workflows.shell import command_line, output

logger = logging.getLogger("export")


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `command_line.run`."""
    return command_line.run(export, ExportConfig, __doc__, argv)


def export(config: ExportConfig) -> int:
    """All of it, top to bottom: what can be refused is refused before anything is computed."""
    # Not above: they take seconds to load, and `--help` or a refused setting needs none of them.
    from csat.export import hub, openvino
    from csat.export.facts import read_facts, why_not_released
    from csat.export.output import check_output, commit
    from csat.licences import licence_of
    from csat.model.files import exported_folder, read_model_config
    from csat.prediction.opening import open_answers
    from workflows.exporting.make import check_licences, make_files
    from workflows.exporting.tiles import find_tiles

    check_output(config.output, overwrite=config.overwrite)
    repository = hub.check_push(config.push) if config.push else None
    if config.openvino:
        openvino.check_installed()
    model_config = read_model_config(exported_folder(config.model))
    facts = read_facts(config.model, model_config, judged=config.judged, licence=config.licence)
    check_licences(why_not_released(facts.metadata), accept=config.accept_license)
    answers = open_answers(config.model, tile_px=config.tile_px, name=config.name)
    answers.about = replace(answers.about, licence=licence_of(facts.metadata))
    tiles, where = find_tiles(config, answers)
    with interruption.scratch_folder("csat-export-") as folder:
        measured = make_files(folder, config, answers, facts, tiles, where)
        commit(folder, config.output, {"model": config.model, "tiles": where, "speeds": measured.speeds})
        for name, why in measured.left_out.items():
            logger.warning("not written: %s: %s", name, why)
        names = sorted(path.name for path in folder.iterdir())
        output.result(f"model: {config.output} ({', '.join(names)})", model=config.output, files=names)
        if repository:
            place = hub.push(folder, repository, private=config.private)
            output.result(f"pushed: {place}", pushed=place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
