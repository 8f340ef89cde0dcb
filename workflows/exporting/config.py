"""The settings of export.py."""

from dataclasses import dataclass, field

from csat.errors import ConfigError
from csat.settings import ModelPlace, Often, Place


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of export.py."""

    model: ModelPlace  # run folder of pretrain.py or finetune.py, or an exported folder, local or s3://; or a name
    output: Place  # folder for the files, local or s3://; a second export replaces what the first has made, and nothing else
    push: Often[str | None] = None  # hf-hub:OWNER/NAME, to upload it too; needs a token (HF_TOKEN)
    private: bool = True  # a repository that push has to make is not public
    accept_license: Often[bool] = False  # write it although a licence behind the model forbids derivatives or commercial use
    licence: Often[str | None] = None  # what the slides of a pretraining are, and their licence: who uses the model reads it
    int8: Often[bool] = False  # also model.int8.onnx, kept where it is faster and decides alike
    fp16: bool = False  # also model.fp16.onnx, for GPUs, kept where it is faster and decides alike
    small: bool = False  # nothing but the weights in half precision, config.json and the card: as the package has its students
    openvino: bool = False  # also OpenVINO's form (needs the package openvino)
    tiles: Often[list[Place]] = field(default_factory=list)  # slides or images to try the files with; empty: the run's own
    num_tiles: int = 32  # tiles to try them with
    calibration_tiles: int = 256  # tiles by which int8 is calibrated
    tile_px: int | None = None  # edge of the tiles; None: as it was trained
    name: Often[str | None] = None  # of the model in its card; None: the run's folder
    judged: Often[Place | None] = None  # run folder of evaluate.py with data.sets: its figures of the model go into the card
    device: str = "cpu"  # where fp16 is measured: cpu or cuda
    threads: int | None = None  # of the CPU; None: all cores
    overwrite: bool = False  # replace files in output that no export has made

    def __post_init__(self):
        for name, least in (("num_tiles", 7), ("calibration_tiles", 7)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.small and (self.int8 or self.fp16 or self.openvino):
            raise ConfigError("small writes the weights alone: leave out int8, fp16 and openvino, or small")
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device is cpu or cuda, not {self.device!r}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, not {self.threads}")
