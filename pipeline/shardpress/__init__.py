"""The public API of shardpress: the public names of the package `pipeline`.

    from shardpress import load_model, open_features

setup.py installs this package next to `pipeline` and `kernels`. Both are loaded here by their paths, because Python
would first find a file `pipeline.py` in the directory of the user's script or notebook.
"""

import importlib.util as _util
import os as _os
import sys as _sys
from types import ModuleType as _ModuleType

_PARENT = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))
# In the repository, this package is a subdirectory of `pipeline`.
_ROOT = _PARENT if _os.path.exists(_os.path.join(_PARENT, "pipeline", "__init__.py")) else _os.path.dirname(_PARENT)


def _load(name: str) -> _ModuleType:
    """Load a package of shardpress by its path. Raise `ImportError` if another module has the same name."""
    path = _os.path.join(_ROOT, name, "__init__.py")
    if name in _sys.modules:
        file = getattr(_sys.modules[name], "__file__", None)
        if file is None or not _os.path.exists(file) or not _os.path.samefile(file, path):
            raise ImportError(
                f"shardpress: another module named {name!r} is already loaded, from {file or 'a directory'}; "
                f"shardpress needs {path}. Rename the other module, or import it in another process."
            )
        return _sys.modules[name]
    spec = _util.spec_from_file_location(name, path, submodule_search_locations=[_os.path.dirname(path)])
    if spec is None or spec.loader is None:
        raise ImportError(f"shardpress: {path} cannot be loaded. Reinstall shardpress.")
    module = _util.module_from_spec(spec)
    _sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del _sys.modules[name]
        raise
    return module


_load("kernels")
_pipeline = _load("pipeline")

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
