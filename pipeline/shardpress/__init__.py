"""The public names of the package `pipeline`, also if another module is called `pipeline`.

    from shardpress import load_model, open_features

setup.py installs it next to `pipeline` and `kernels`. A file `pipeline.py` in the directory of a script or
notebook comes first on Python's path. Therefore both packages are loaded by their location, before they are imported.
"""

import importlib.util as _util
import os as _os
import sys as _sys
from types import ModuleType as _ModuleType

_AROUND = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))
# In the repository it is a part of `pipeline`.
_ROOT = _AROUND if _os.path.exists(_os.path.join(_AROUND, "pipeline", "__init__.py")) else _os.path.dirname(_AROUND)


def _load_package(name: str) -> _ModuleType:
    """Return a package of shardpress, loaded by its location, even if another module of this name comes first."""
    path = _os.path.join(_ROOT, name, "__init__.py")
    if name in _sys.modules:
        location = getattr(_sys.modules[name], "__file__", None)
        if location is None or not _os.path.exists(location) or not _os.path.samefile(location, path):
            raise ImportError(
                f"shardpress: the module {name!r} is already loaded from {location or 'a directory'}, expected "
                f"{path}. Rename that file, or use it in another process."
            )
        return _sys.modules[name]
    spec = _util.spec_from_file_location(name, path, submodule_search_locations=[_os.path.dirname(path)])
    if spec is None or spec.loader is None:
        raise ImportError(f"shardpress: {path} cannot be loaded. Install shardpress again.")
    module = _util.module_from_spec(spec)
    _sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del _sys.modules[name]
        raise
    return module


_load_package("kernels")
_pipeline = _load_package("pipeline")

TYPE_CHECKING = False  # as in `pipeline`
if TYPE_CHECKING:
    from pipeline import TiedAutoencoder as TiedAutoencoder
    from pipeline import load_model as load_model
    from pipeline import open_features as open_features
else:

    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version

            return version("shardpress")
        if name not in _pipeline._PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(_pipeline, name)

    def __dir__():
        return [*globals(), *_pipeline._PUBLIC, "__version__"]
