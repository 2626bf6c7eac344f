"""Tests of Theano's settings: which ones take precedence, and which are refused."""

from concurrent.futures import ThreadPoolExecutor
from configparser import RawConfigParser
from contextlib import nullcontext

import pytest

from shardpress_kernels import backend
from shardpress_kernels.theanoflags import UnknownFlag, check_flags
from tests.support.cases import case, each
from tests.support.interpreters import run_python

pytestmark = pytest.mark.process

# Cards that do not exist. The fallback shows without delay which setting was read.
FILE = "cuda101"
OTHER_FILE = "cuda102"
FLAG = "cuda103"


# ---- the device, as Theano itself reads it from the settings


def naming(device):
    return f"[global]\ndevice = {device}\n"


HOME_FILE = {".theanorc": naming(FILE)}
# The expected device, files in the home directory, and environment variables, which may contain "{home}".
SETTINGS = {
    "the file at home": (FILE, HOME_FILE, {}),
    "later files win, and replace the file at home": (
        OTHER_FILE,
        {**HOME_FILE, "a": naming(FLAG), "b": naming(OTHER_FILE)},
        {"THEANORC": "{home}/a:{home}/b:{home}/missing"},
    ),
    "the last of repeated flags, before a comment, wins over files": (
        FLAG,
        HOME_FILE,
        {"THEANO_FLAGS": f"device=cpu, floatX=float32,,device='{FLAG}',#,device={FILE}"},
    ),
}

# Import Theano alone, until it has read its settings. Later modules would open the device and need a compiler.
DEVICE_OF_THEANO = """
import sys
sys.modules["shardpress_kernels.compilecache"] = None
try:
    import theano
except ImportError:
    facts["device"] = sys.modules["theano.configdefaults"].config.device
"""

# Theano is imported with the CPU, because it would log a failure of a device and could not be queried again.
DEVICE_OF_BACKEND = """
from shardpress_kernels import backend, theanoflags
assert backend.load().config.device == "cpu"
facts["device"] = theanoflags.requested_device()
"""


def test_device_is_read_from_flags_and_files_as_theano_reads_it(tmp_path):
    def devices_of(name):
        _, files, variables = SETTINGS[name]
        home = tmp_path / name
        home.mkdir()
        for file, text in files.items():
            (home / file).write_text(text)
        variables = {variable: value.format(home=home) for variable, value in variables.items()}
        ended = [
            run_python(DEVICE_OF_BACKEND, HOME=home, **variables),
            run_python(DEVICE_OF_THEANO, warnings="ignore", HOME=home, **variables),
        ]
        return [each.facts.get("device", each.stderr) for each in ended]

    # This fills a cold compile cache. Otherwise the other processes would wait for its lock for 5 to 10 s at a time.
    run_python(DEVICE_OF_BACKEND)
    with ThreadPoolExecutor(2) as pool:
        for name, found in zip(SETTINGS, pool.map(devices_of, SETTINGS), strict=True):
            expected, _, _ = SETTINGS[name]
            with case(name):
                assert set(found) == {expected}


@pytest.mark.compiler
@each(
    "flags, text, phrase",
    [
        ("devcie=cuda", "", r"THEANO_FLAGS: .*'devcie'.* device\?"),
        ("device", "", "device=VALUE"),
        ("", "[gcc]\ncxxflag = -O1\n", r"\.theanorc: .*\bcxxflag\b.*\[gcc\].* gcc\.cxxflags\?"),
        (",device='cpu', # devcie", "[DEFAULT]\nmine = 1\n[global]\nfloatX = float32\n", None),
    ],
)
def test_unknown_name_is_an_error_that_names_the_nearest(monkeypatch, flags, text, phrase):
    read = RawConfigParser()  # as in Theano
    read.read_string(text)
    monkeypatch.setattr(backend.load().configparser, "theano_raw_cfg", read)
    monkeypatch.setenv("THEANO_FLAGS", flags)
    with pytest.raises(UnknownFlag, match=phrase) if phrase else nullcontext():
        check_flags()


# ---- our defaults, which all settings of the user override

CONFIG = """
from shardpress_kernels import backend
config = backend.load().config
facts |= {"floatX": config.floatX, "cxxflags": config.gcc.cxxflags, "ldflags": config.blas.ldflags}
facts |= {"timeout": config.compile.timeout, "dnn": config.dnn.enabled, "base": config.base_compiledir}
"""


def test_settings_of_the_user_override_the_defaults(tmp_path):
    base = tmp_path / "cache"
    (tmp_path / ".theanorc").write_text(
        f"[global]\nfloatX = float64\nbase_compiledir = {base}\n[gcc]\ncxxflags = -O1\n[blas]\nldflags = -lblas\n"
        "[compile]\ntimeout = 8\n[dnn]\nenabled = auto\n"
    )
    facts = run_python(CONFIG, HOME=tmp_path, THEANO_FLAGS="blas.ldflags=,compile.timeout=7").facts
    expected = {"floatX": "float64", "cxxflags": "-O1", "ldflags": "", "timeout": 7, "dnn": "auto", "base": str(base)}
    assert facts == expected


def test_blas_is_found_in_a_path_with_spaces(tmp_path):
    code = f"""
    import os
    import scipy_openblas32
    folder = {str(tmp_path / "my files")!r}
    os.symlink(scipy_openblas32.get_lib_dir(), folder)
    scipy_openblas32.get_lib_dir = lambda: folder
    from shardpress_kernels import backend
    theano = backend.load()
    x = theano.tensor.matrix()
    product = theano.function([x], theano.tensor.dot(x, x))
    facts["ops"] = [str(node.op) for node in product.maker.fgraph.toposort()]
    facts["product"] = product([[1, 2], [3, 4]]).tolist()
    """
    assert run_python(code).facts == {"ops": ["Dot22"], "product": [[7, 10], [15, 22]]}


ENVIRONMENT_AROUND_LOAD = """
import os, tempfile
before = dict(os.environ)
mask = os.umask(0o027)
from shardpress_kernels import backend
try:
    backend.load()
except ValueError as error:
    facts["error"] = str(error)
facts["changed"] = sorted(set(before.items()) ^ set(os.environ.items()))
facts["umask"] = os.umask(mask)
facts["left"] = os.listdir(tempfile.gettempdir())
"""


@each("flags, error", [("floatX=float64", ""), ("floatX=float31", "float31"), ("devcie=cuda", "devcie")])
def test_environment_is_restored_after_loading_or_a_failure(tmp_path, flags, error):
    facts = run_python(ENVIRONMENT_AROUND_LOAD, THEANO_FLAGS=flags, THEANORC=None, TMPDIR=tmp_path).facts
    assert error in facts.pop("error", "")
    assert facts == {"changed": [], "umask": 0o027, "left": []}
