"""Tests of Theano's settings: which ones take precedence, and which are refused.

Sample: Theano alone reads 4 of the 12 settings of a device; with TEST_CASES=all each of them.
"""

from concurrent.futures import ThreadPoolExecutor
from configparser import RawConfigParser
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shardpress_kernels import backend
from shardpress_kernels.flags import UnknownFlag, check_flags
from tests.support.cases import each, sample
from tests.support.interpreters import run_python

pytestmark = pytest.mark.process

# Cards that do not exist. The fallback shows without delay which setting was read.
FILE = "cuda101"
OTHER_FILE = "cuda102"
FLAG = "cuda103"

START = "from shardpress_kernels import backend\ndevice = backend.start()\n"


# ---- the device, as Theano itself reads it from the settings


@dataclass
class Settings:
    """Settings of a user: files by name in a home directory, and environment variables that may contain ``{home}``."""

    expected: str
    files: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)


def naming(device):
    return f"[global]\ndevice = {device}\n"


SETTINGS = {
    "nothing": Settings("cpu"),
    "flags": Settings(FLAG, variables={"THEANO_FLAGS": f"device={FLAG}"}),
    "a-file-in-THEANORC": Settings(FILE, {"mine": naming(FILE)}, {"THEANORC": "{home}/mine"}),
    "the-file-at-home": Settings(FILE, {".theanorc": naming(FILE)}),
    "flags-win-over-files": Settings(FLAG, {".theanorc": naming(FILE)}, {"THEANO_FLAGS": f"device={FLAG}"}),
    "flags-for-the-cpu-win-too": Settings("cpu", {".theanorc": naming(FILE)}, {"THEANO_FLAGS": "device=cpu"}),
    "later-files-win": Settings(
        OTHER_FILE, {"a": naming(FILE), "b": naming(OTHER_FILE)}, {"THEANORC": "{home}/a:{home}/b"}
    ),
    "files-without-a-device": Settings(
        FILE, {"a": naming(FILE), "b": "[global]\nfloatX = float32\n"}, {"THEANORC": "~/a:{home}/b:{home}/missing"}
    ),
    "THEANORC-replaces-the-file-at-home": Settings(
        "cpu", {".theanorc": naming(FILE), "empty": ""}, {"THEANORC": "{home}/empty"}
    ),
    "an-empty-THEANORC-names-no-file": Settings("cpu", {".theanorc": naming(FILE)}, {"THEANORC": ""}),
    "the-last-of-repeated-flags": Settings(
        FLAG, variables={"THEANO_FLAGS": f"device=cpu, floatX=float32,,device='{FLAG}',"}
    ),
    "a-comment-in-flags": Settings(FLAG, variables={"THEANO_FLAGS": f"device={FLAG}#,device={FILE}"}),
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

DEVICE_OF_BACKEND = """
from shardpress_kernels import backend, flags
facts["imported with"] = backend.load().config.device
facts["device"] = flags.requested_device()
"""


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """Return the devices that our backend chooses for each of the settings, and Theano alone for some of them."""

    read_by_theano = sample(SETTINGS, 4)

    def read(name, home):
        settings = SETTINGS[name]
        for file, text in settings.files.items():
            (home / file).write_text(text)
        variables = {name: value.format(home=home) for name, value in settings.variables.items()}
        ended = [run_python(DEVICE_OF_BACKEND, HOME=home, **variables)]
        if name in read_by_theano:
            ended.append(run_python(DEVICE_OF_THEANO, warnings="ignore", HOME=home, **variables))
        assert not any(each.code for each in ended), ended
        return [each.facts for each in ended]

    # This fills a cold compile cache. Otherwise the other processes would wait for its lock for 5 to 10 s at a time.
    run_python(DEVICE_OF_BACKEND)
    # The folders are not created in the threads, because two concurrent first requests could get different roots.
    homes = [tmp_path_factory.mktemp("home") for _ in SETTINGS]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SETTINGS, pool.map(read, SETTINGS, homes), strict=True))


@each("case", SETTINGS)
def test_device_is_read_from_flags_and_files_as_theano_reads_it(devices, case):
    by_backend, *by_theano = devices[case]
    assert {each["device"] for each in (by_backend, *by_theano)} == {SETTINGS[case].expected}
    assert by_backend["imported with"] == "cpu"  # Theano would log a failure and could not be queried again


@each("device, phrase", [("gpu0", "device=cuda"), ("abacus", 'start with one of "cpu", "opencl" or "cuda"')])
def test_unknown_device_is_refused_with_the_message_of_theano(device, phrase):
    code = """
    from shardpress_kernels import backend
    backend.load()
    try:
        backend.start()
    except ValueError as error:
        facts["error"] = " ".join(str(error).split())
    """
    ended = run_python(code, THEANO_FLAGS=f"device={device}")
    assert phrase in ended.facts["error"]


REFUSING = """
from shardpress_kernels import backend
from shardpress_kernels.flags import UnknownFlag
try:
    backend.load()
except UnknownFlag as error:
    facts["error"] = str(error)
"""


def assert_refused(place, phrases):
    """Check that the settings are refused with a place and phrases, or are valid if there are no phrases."""
    if phrases is None:
        check_flags()
        return
    with pytest.raises(UnknownFlag) as refused:
        check_flags()
    assert [phrase for phrase in [place, *phrases] if phrase not in str(refused.value)] == []


@pytest.mark.compiler
@each(
    "flags, phrases",
    [
        ("devcie=cuda", ["'devcie'", " device?"]),
        ("gcc.cxxflag=-O1", ["'gcc.cxxflag'", " gcc.cxxflags?"]),
        ("cuda", ["'cuda'"]),
        ("device", ["'device'", "device=VALUE"]),
        ("device=cpu # as it was", None),
        (",device='cpu',", None),
    ],
)
def test_unknown_flag_is_an_error_that_names_the_nearest(monkeypatch, flags, phrases):
    backend.load()
    monkeypatch.setenv("THEANO_FLAGS", flags)
    assert_refused("THEANO_FLAGS", phrases)


@pytest.mark.compiler
@each(
    "text, phrases",
    [
        (
            "[global]\ndevcie = cuda\n",
            ["'devcie'", "[global]", " device?"],
        ),
        ("[gpuarray]\ndevice = cuda\n", ["'device'", "[gpuarray]"]),
        ("[DEFAULT]\nmine = 1\n[global]\nfloatX = float32\n[gcc]\ncxxflags = -O%(mine)s\n", None),
    ],
)
def test_unknown_option_in_a_file_is_an_error(monkeypatch, text, phrases):
    read = RawConfigParser()  # as in Theano
    read.read_string(text)
    monkeypatch.setattr(backend.load().configparser, "theano_raw_cfg", read)
    assert_refused(".theanorc", phrases)


def test_unknown_names_are_refused_when_theano_is_loaded(tmp_path):
    (tmp_path / "mine").write_text("[global]\ndevcie = cuda\n")
    for settings, words in (({"THEANO_FLAGS": "cuda"}, "'cuda'"), ({"THEANORC": tmp_path / "mine"}, "'devcie'")):
        assert words in run_python(REFUSING, **settings).facts["error"]
    valid = run_python(REFUSING, THEANO_FLAGS="device=cpu # as it was")
    assert (valid.code, valid.facts) == (0, {})


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


def test_defaults_apply_without_settings_of_the_user(tmp_path):
    facts = run_python(CONFIG, XDG_CACHE_HOME=tmp_path).facts
    assert facts["floatX"] == "float32"
    assert "-D__FAST_MATH__" in facts["cxxflags"]
    assert "-ffast-math" not in facts["cxxflags"]  # it would switch the whole process to flush-to-zero
    assert "-lscipy_openblas" in facts["ldflags"]
    assert facts["timeout"] == 600
    assert facts["dnn"] == "False"
    assert Path(facts["base"]).parent == tmp_path / "shardpress"


def test_files_of_the_user_override_the_defaults(tmp_path):
    base = tmp_path / "cache"
    (tmp_path / ".theanorc").write_text(
        f"[global]\nfloatX = float64\nbase_compiledir = {base}\n[gcc]\ncxxflags = -O1\n[blas]\nldflags = -lblas\n"
        "[compile]\ntimeout = 7\n[dnn]\nenabled = auto\n"
    )
    expected = {"floatX": "float64", "cxxflags": "-O1", "ldflags": "-lblas", "timeout": 7, "dnn": "auto"}
    assert run_python(CONFIG, HOME=tmp_path).facts == expected | {"base": str(base)}


def test_flags_of_the_user_override_the_defaults(tmp_path):
    base = tmp_path / "cache"
    flags = f"floatX=float64,gcc.cxxflags=-O1,blas.ldflags=,compile.timeout=7,dnn.enabled=auto,base_compiledir={base}"
    expected = {"floatX": "float64", "cxxflags": "-O1", "ldflags": "", "timeout": 7, "dnn": "auto"}
    assert run_python(CONFIG, THEANO_FLAGS=flags).facts == expected | {"base": str(base)}


def test_file_with_one_setting_keeps_the_other_defaults(tmp_path):
    (tmp_path / "mine").write_text("[blas]\nldflags = -lblas\n")
    facts = run_python(CONFIG, THEANORC=tmp_path / "mine").facts
    assert facts["ldflags"] == "-lblas"
    assert facts["floatX"] == "float32"


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


@each("flags", [None, "device=cuda,floatX=float64", "floatX=float31"])
def test_environment_is_restored_after_loading_or_a_failure(tmp_path, flags):
    variables = {"THEANO_FLAGS": flags, "THEANORC": None if flags is None else tmp_path / "mine", "TMPDIR": tmp_path}
    ended = run_python(ENVIRONMENT_AROUND_LOAD, **variables)
    facts = ended.facts
    assert facts.pop("error", "").startswith('Invalid value ("float31")' if flags == "floatX=float31" else "")
    assert facts == {"changed": [], "umask": 0o027, "left": []}


def test_gpu_of_a_parent_process_is_ignored():
    """Theano refuses to start a device when it inherits this variable."""
    code = START + (
        "import os\n"
        "facts |= {'requested': device.requested, 'reason': device.reason}\n"
        "facts['left'] = 'THEANO_GPU_IS_ALREADY_ACTIVE' in os.environ"
    )
    ended = run_python(code, THEANO_FLAGS=f"device={FLAG}", THEANO_GPU_IS_ALREADY_ACTIVE="Yes")
    assert ended.facts["requested"] == FLAG
    assert "subprocess" not in ended.facts["reason"]
    assert not ended.facts["left"]
