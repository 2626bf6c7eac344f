"""Tests of Theano's settings: which ones take precedence, and which are refused."""

from concurrent.futures import ThreadPoolExecutor
from configparser import RawConfigParser
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shardpress_kernels import backend
from shardpress_kernels.flags import UnknownFlag, check_flags
from tests.support.cases import case, each
from tests.support.interpreters import run_python

pytestmark = pytest.mark.process

# Cards that do not exist. The fallback shows without delay which setting was read.
FILE = "cuda101"
OTHER_FILE = "cuda102"
FLAG = "cuda103"


# ---- the device, as Theano itself reads it from the settings


@dataclass
class Settings:
    """Settings of a user: files by name in a home directory, and environment variables that may contain ``{home}``."""

    expected: str
    files: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)


def naming(device):
    return f"[global]\ndevice = {device}\n"


HOME_FILE = {".theanorc": naming(FILE)}
SETTINGS = {
    "nothing": Settings("cpu"),
    "the file at home": Settings(FILE, HOME_FILE),
    "flags win over files": Settings(FLAG, HOME_FILE, {"THEANO_FLAGS": f"device={FLAG}"}),
    "later files win": Settings(
        OTHER_FILE, {"a": naming(FILE), "b": naming(OTHER_FILE)}, {"THEANORC": "{home}/a:{home}/b:{home}/missing"}
    ),
    "THEANORC replaces the file at home": Settings("cpu", {**HOME_FILE, "empty": ""}, {"THEANORC": "{home}/empty"}),
    "the last of repeated flags, before a comment": Settings(
        FLAG, variables={"THEANO_FLAGS": f"device=cpu, floatX=float32,,device='{FLAG}',#,device={FILE}"}
    ),
}

# Import Theano alone, until it has read its settings. Later modules would open the device and need a compiler.
DEVICE_OF_THEANO = """
import builtins, sys
import numpy as np
for name in ("bool", "int", "float", "complex", "object", "str"):
    setattr(np, name, getattr(builtins, name))
sys.modules["theano.gof"] = None
try:
    import theano
except ImportError:
    facts["device"] = sys.modules["theano.configdefaults"].config.device
"""

# Theano is imported with the CPU, because it would log a failure of a device and could not be queried again.
DEVICE_OF_BACKEND = """
from shardpress_kernels import backend, flags
assert backend.load().config.device == "cpu"
facts["device"] = flags.requested_device()
"""


def test_device_is_read_from_flags_and_files_as_theano_reads_it(tmp_path):
    def devices_of(name):
        settings = SETTINGS[name]
        home = tmp_path / name
        home.mkdir()
        for file, text in settings.files.items():
            (home / file).write_text(text)
        variables = {name: value.format(home=home) for name, value in settings.variables.items()}
        ended = [
            run_python(DEVICE_OF_BACKEND, HOME=home, **variables),
            run_python(DEVICE_OF_THEANO, warnings="ignore", HOME=home, **variables),
        ]
        return [each.facts.get("device", each.stderr) for each in ended]

    # This fills a cold compile cache. Otherwise the other processes would wait for its lock for 5 to 10 s at a time.
    run_python(DEVICE_OF_BACKEND)
    with ThreadPoolExecutor(2) as pool:
        for (name, settings), found in zip(SETTINGS.items(), pool.map(devices_of, SETTINGS), strict=True):
            with case(name):
                assert set(found) == {settings.expected}


REFUSING = """
from shardpress_kernels import backend
try:
    backend.load()
    backend.start()
except ValueError as error:
    facts["error"] = " ".join(str(error).split())
"""


def test_unknown_names_and_devices_are_refused_by_a_process(tmp_path):
    (tmp_path / "mine").write_text("[global]\ndevcie = cuda\n")
    assert "'devcie'" in run_python(REFUSING, THEANORC=tmp_path / "mine").facts["error"]
    assert '"cpu", "opencl" or "cuda"' in run_python(REFUSING, THEANO_FLAGS="device=abacus").facts["error"]


@pytest.mark.compiler
@each(
    "flags, text, phrase",
    [
        ("devcie=cuda", "", r"THEANO_FLAGS: .*'devcie'.* device\?"),
        ("gcc.cxxflag=-O1", "", r"'gcc\.cxxflag'.* gcc\.cxxflags\?"),
        ("device", "", "device=VALUE"),
        ("", "[global]\ndevcie = cuda\n", r"\.theanorc: .*'devcie'.*\[global\].* device\?"),
        ("", "[gpuarray]\ndevice = cuda\n", r"'device'.*\[gpuarray\]"),
    ],
)
def test_unknown_name_is_an_error_that_names_the_nearest(monkeypatch, flags, text, phrase):
    set_names(monkeypatch, flags, text)
    with pytest.raises(UnknownFlag, match=phrase):
        check_flags()


@pytest.mark.compiler
def test_comments_empty_flags_and_defaults_are_no_unknown_names(monkeypatch):
    text = "[DEFAULT]\nmine = 1\n[global]\nfloatX = float32\n[gcc]\ncxxflags = -O%(mine)s\n"
    set_names(monkeypatch, ",device='cpu', # as it was", text)
    check_flags()


def set_names(monkeypatch, flags, text):
    """Set the flags and the text of the file that Theano has read."""
    read = RawConfigParser()  # as in Theano
    read.read_string(text)
    monkeypatch.setattr(backend.load().configparser, "theano_raw_cfg", read)
    monkeypatch.setenv("THEANO_FLAGS", flags)


def test_scipy_is_not_loaded_with_theano_but_can_be_imported():
    code = """
    import sys
    from shardpress_kernels import backend
    backend.load()
    facts["before"] = [name for name in sys.modules if name.partition(".")[0] == "scipy"]
    import scipy.stats
    facts["after"] = scipy.stats.chi2.sf(0, 1)
    """
    assert run_python(code).facts == {"before": [], "after": 1.0}


# ---- our defaults, which all settings of the user override

CONFIG = """
from shardpress_kernels import backend
config = backend.load().config
facts |= {"floatX": config.floatX, "cxxflags": config.gcc.cxxflags, "ldflags": config.blas.ldflags}
facts |= {"timeout": config.compile.timeout, "dnn": config.dnn.enabled, "base": config.base_compiledir}
"""


def test_settings_of_the_user_override_the_defaults(tmp_path):
    (tmp_path / "mine").write_text("[compile]\ntimeout = 7\n")
    facts = run_python(CONFIG, XDG_CACHE_HOME=tmp_path, THEANORC=tmp_path / "mine").facts
    assert facts["floatX"] == "float32"
    assert "-D__FAST_MATH__" in facts["cxxflags"]
    assert "-ffast-math" not in facts["cxxflags"]  # it would switch the whole process to flush-to-zero
    assert "-lscipy_openblas" in facts["ldflags"]
    assert facts["timeout"] == 7
    assert facts["dnn"] == "False"
    assert Path(facts["base"]).parent == tmp_path / "shardpress"

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


@each("value", ["float64", "float31"])
def test_environment_is_restored_after_loading_or_a_failure(tmp_path, value):
    flags = f"device=cuda,floatX={value}"
    facts = run_python(ENVIRONMENT_AROUND_LOAD, THEANO_FLAGS=flags, THEANORC=None, TMPDIR=tmp_path).facts
    assert ("error" in facts) is (value == "float31")
    facts.pop("error", None)
    assert facts == {"changed": [], "umask": 0o027, "left": []}


def test_gpu_of_a_parent_process_is_ignored():
    # Theano refuses to start a device when it inherits this variable.
    code = """
    from shardpress_kernels import backend
    device = backend.start()
    facts |= {"requested": device.requested, "refused": "subprocess" in device.reason}
    """
    ended = run_python(code, THEANO_FLAGS=f"device={FLAG}", THEANO_GPU_IS_ALREADY_ACTIVE="Yes")
    assert ended.facts == {"requested": FLAG, "refused": False}
