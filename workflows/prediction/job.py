"""A prediction as its processes see it: what the driver found out, small enough to travel to all of them. No torch."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from csat.prediction.layout import Layout, slide_names
from csat.runs.folder import RunFolder
from csat.runs.plan import Plan
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import Manifest, SlideTiles
from workflows.prediction import choice
from workflows.prediction.columns import HEAT, LABELS
from workflows.prediction.config import PredictConfig
from workflows.prediction.description import Description

ROW_BYTES = 1000  # of a tile's row but for what was answered: its place, its slide's frame
CELL_BYTES = 2**14  # of a channel of a tile's cells: no more than so many, for any tile that a network takes


class MapWanted(NamedTuple):
    """A dense answer that becomes a map of the slide."""

    name: str  # column of its cells
    answer: str
    cell_um: float  # edge of a cell, um
    labels: bool = False  # the most probable class, not probabilities


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """Which model, which files, and how slides are cut; with a manifest also which tiles.

    Attributes:
        files: Names of those that are written for each slide, see `workflows.prediction.choice`.
        manifest: None until the tiles are cut.
        names: Of the slides' folders, in the manifest's order.
    """

    config: PredictConfig
    model: Description
    files: tuple[str, ...]
    manifest: Manifest | None = None
    names: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        return Layout(RunFolder(self.config.output).uri)

    @cached_property
    def slides(self) -> list[SlideTiles]:
        """Those that have tiles, in the manifest's order: the number of a slide is its place here."""
        return self.manifest.slides_in_order()

    @property
    def plan(self) -> Plan:
        """All tiles once, in the manifest's order: a position is a tile's place in the manifest."""
        return Plan(self.manifest.chunks["rows"], self.manifest.chunks["shard"], num_epochs=1, seed=None)

    @property
    def tiling(self) -> TilingConfig:
        """How the model has to be shown slides."""
        model = self.model
        cut = {"tile_px": model.tile_px, "overlap_px": model.overlap_px, "margin_px": model.crop_px}
        return self.config.data.tiling(mpp=model.mpp, **cut)

    @property
    def nuclei_maps(self) -> tuple[str, ...]:
        """Dense answers that nuclei are made of; () where none are looked for."""
        return choice.SOURCES[choice.NUCLEI](self.model) if choice.NUCLEI in self.files else ()

    @property
    def vectors(self) -> tuple[str, ...]:
        """Answers about a tile as a whole that files hold."""
        needed = choice.needed_answers(self.files, self.model)
        return tuple(name for name in needed if not self.model.spec(name).is_dense)

    @property
    def maps(self) -> tuple[MapWanted, ...]:
        """Dense answers that become maps of the slide."""
        wanted = []
        if {choice.HEATMAP, choice.HEATMAP_PNG} & set(self.files):
            wanted += [MapWanted(HEAT, name, self.config.maps.heatmap_um) for name in choice.heat_source(self.model)]
        if choice.MASK in self.files:
            wanted.append(MapWanted(LABELS, choice.CLASS_MASK, self.config.maps.mask_um, labels=True))
        return tuple(each for each in wanted if self.model.spec(each.answer).is_dense)

    def classes_of(self, answer: str) -> tuple[str, ...]:
        """Names of the channels of an answer."""
        spec, classes = self.model.spec(answer), self.model.classes
        if len(classes) == spec.channels:
            return classes
        return spec.channel_names or tuple(f"{answer} {channel}" for channel in range(spec.channels))

    @property
    def channel_names(self) -> dict[str, tuple[str, ...]]:
        """Names of the channels of each answer about a tile as a whole; under HEAT those of the map of probabilities."""
        names = {answer: self.classes_of(answer) for answer in self.vectors}
        return names | {each.name: self.classes_of(each.answer) for each in self.maps}

    @property
    def tile_bytes(self) -> int:
        """Of one tile's pixels."""
        return 3 * self.model.tile_px**2

    def bytes_per_answer(self) -> int:
        """About, of one tile's row between the model and what makes tables of it."""
        specs = map(self.model.spec, (*self.nuclei_maps, *self.vectors))
        cells = sum(CELL_BYTES if each.labels else CELL_BYTES * self.model.spec(each.answer).channels for each in self.maps)
        return sum(spec.num_bytes(self.model.tile_px) for spec in specs) + cells + ROW_BYTES

    def over(self, manifest: Manifest) -> "PredictJob":
        """The job over these tiles."""
        names = slide_names([slide.slide for slide in manifest.slides_in_order()])
        return replace(self, manifest=manifest, names=tuple(names))


def make_job(config: PredictConfig, model: Description) -> PredictJob:
    """The job before its tiles are known. Raises ConfigError: files that the model cannot give."""
    return PredictJob(config=config, model=model, files=choice.chosen_files(config.write, model))
