"""The student: the CSAT backbone, any other timm backbone, decoder and heads.

Once this package is imported timm knows the backbones in `csat/model/networks`: at once where timm is loaded already, else
as soon as anybody loads it. timm itself takes seconds, and settings, refusals and `help` need none of it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# Modules whose import registers them with timm.
BACKBONES = ("csat.model.networks.csat_timm", "csat.model.networks.resnet10")


class _TimmFinder(MetaPathFinder):
    """Finds timm as everything is found, and has our backbones registered when it has been loaded."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(self, spec.loader)
        return spec


class _RegisteringLoader(Loader):
    """Loads timm as its own loader does, then registers."""

    def __init__(self, finder: _TimmFinder, loader: Loader):
        self.finder, self.loader = finder, loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        sys.meta_path.remove(self.finder)
        _register()


def _register() -> None:
    for name in BACKBONES:
        importlib.import_module(name)


if "timm" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _TimmFinder())
