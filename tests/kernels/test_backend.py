"""The door to Theano: whose settings win, whose cache is trusted, and what happens without the device asked for."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.interpreters import fresh

# Cards that no machine has: asking for one shows what was read, and falls back at once.
FILE, OTHER_FILE, FLAG = "cuda101", "cuda102", "cuda103"

START = "from kernels import backend\ndevice = backend.start()\n"


def has_nvidia_driver():
    try:
        ctypes.CDLL("libcuda.so")
    except OSError:
        return False
    return True


needs_pygpu = pytest.mark.skipif(find_spec("pygpu") is None, reason="pygpu is not installed")
without_a_card = pytest.mark.skipif(has_nvidia_driver(), reason="this machine has an NVIDIA driver")


# ---- which device: as Theano itself reads it


@dataclass
class Settings:
    """What a user has set: files by name, in a home of their own, and variables that may name ``{home}``."""

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
    "files-that-do-not-say-leave-it": Settings(
        FILE, {"a": naming(FILE), "b": "[global]\nfloatX = float32\n"}, {"THEANORC": "~/a:{home}/b:{home}/not-there"}
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

# Theano alone, as far as it reads its settings: the modules after that would open the device, and need a compiler.
THEANOS_OWN = """
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

OURS = """
from kernels import backend
facts["device"] = backend.start().requested
facts["imported with"] = backend.load().config.device
"""


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """For each of the settings: what our backend makes of them, and what Theano alone does."""

    def read(settings, home):
        for name, text in settings.files.items():
            (home / name).write_text(text)
        variables = {name: value.format(home=home) for name, value in settings.variables.items()}
        ours = fresh(OURS, HOME=home, **variables)
        theanos = fresh(THEANOS_OWN, warnings="ignore", HOME=home, **variables)
        assert (ours.code, theanos.code) == (0, 0), ours.stderr + theanos.stderr
        return ours.facts, theanos.facts

    fresh(OURS)  # fills a cold compile cache, on whose lock the others would wait for 5 to 10 s at a time
    # Not by the threads: two that ask for the first folder of a session at one time may be given different roots.
    homes = [tmp_path_factory.mktemp("home") for _ in SETTINGS]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SETTINGS, pool.map(read, SETTINGS.values(), homes), strict=True))


@pytest.mark.parametrize("case", SETTINGS)
def test_device_is_read_from_flags_and_files_as_theano_reads_it(devices, case):
    ours, theanos = devices[case]
    assert ours["device"] == theanos["device"] == SETTINGS[case].expected
    assert ours["imported with"] == "cpu"  # Theano would log a failure, and could not be asked again


@pytest.mark.parametrize(
    ("device", "phrase"), [("gpu0", "device=cuda"), ("abacus", 'start with one of "cpu", "opencl" or "cuda"')]
)
def test_a_device_that_theano_does_not_know_is_refused_in_its_words(device, phrase):
    code = """
    from kernels import backend
    backend.load()
    try:
        backend.start()
    except ValueError as error:
        facts["error"] = " ".join(str(error).split())
    """
    ended = fresh(code, THEANO_FLAGS=f"device={device}")
    assert phrase in ended.facts["error"]


REFUSING = """
from kernels import backend
from kernels.flags import UnknownFlag
try:
    backend.load()
except UnknownFlag as error:
    facts["error"] = str(error)
"""


@pytest.mark.parametrize(
    ("flags", "phrase"),
    [
        ("devcie=cuda", "THEANO_FLAGS: Theano has no flag 'devcie'. Did you mean device?"),
        ("gcc.cxxflag=-O1", "THEANO_FLAGS: Theano has no flag 'gcc.cxxflag'. Did you mean gcc.cxxflags?"),
        ("cuda", "THEANO_FLAGS: Theano has no flag 'cuda'."),
        ("device", "THEANO_FLAGS: 'device' has no value, expected device=VALUE"),
        ("device=cpu # as it was", None),
        (",device='cpu',", None),
    ],
)
def test_a_flag_that_theano_would_pass_over_is_an_error_that_names_the_nearest(flags, phrase):
    found = fresh(REFUSING, THEANO_FLAGS=flags).facts.get("error")
    assert (found or "").startswith(phrase or "")
    assert (found is None) == (phrase is None)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        (
            "[global]\ndevcie = cuda\n",
            ".theanorc: Theano has no option 'devcie' in section [global]. Did you mean device?",
        ),
        ("[gpuarray]\ndevice = cuda\n", ".theanorc: Theano has no option 'device' in section [gpuarray]."),
        ("[DEFAULT]\nmine = 1\n[global]\nfloatX = float32\n[gcc]\ncxxflags = -O%(mine)s\n", None),
    ],
)
def test_an_option_in_a_file_that_theano_would_pass_over_is_an_error(tmp_path, text, phrase):
    (tmp_path / "mine").write_text(text)
    found = fresh(REFUSING, THEANORC=tmp_path / "mine").facts.get("error")
    assert (found or "").startswith(phrase or "")
    assert (found is None) == (phrase is None)


def test_theano_is_loaded_without_scipy_which_others_can_import_afterwards():
    code = """
    import sys
    from kernels import backend
    backend.load()
    facts["before"] = [name for name in sys.modules if name.partition(".")[0] == "scipy"]
    import scipy.stats
    facts["after"] = scipy.stats.chi2.sf(0, 1)
    """
    assert fresh(code).facts == {"before": [], "after": 1.0}


# ---- our defaults, below everything the user says

CONFIG = """
from kernels import backend
config = backend.load().config
facts |= {"floatX": config.floatX, "cxxflags": config.gcc.cxxflags, "ldflags": config.blas.ldflags}
facts |= {"timeout": config.compile.timeout, "dnn": config.dnn.enabled, "base": config.base_compiledir}
"""


def test_our_defaults_hold_when_the_user_says_nothing(tmp_path):
    facts = fresh(CONFIG, XDG_CACHE_HOME=tmp_path).facts
    assert facts["floatX"] == "float32"
    assert "-D__FAST_MATH__" in facts["cxxflags"]
    assert "-ffast-math" not in facts["cxxflags"]  # it would switch the whole process to flush-to-zero
    assert "-lscipy_openblas" in facts["ldflags"]
    assert facts["timeout"] == 600
    assert facts["dnn"] == "False"
    assert Path(facts["base"]).parent == tmp_path / "shardpress"


def test_our_defaults_lose_to_each_of_the_users_files(tmp_path):
    base = tmp_path / "cache"
    (tmp_path / ".theanorc").write_text(
        f"[global]\nfloatX = float64\nbase_compiledir = {base}\n[gcc]\ncxxflags = -O1\n[blas]\nldflags = -lblas\n"
        "[compile]\ntimeout = 7\n[dnn]\nenabled = auto\n"
    )
    expected = {"floatX": "float64", "cxxflags": "-O1", "ldflags": "-lblas", "timeout": 7, "dnn": "auto"}
    assert fresh(CONFIG, HOME=tmp_path).facts == expected | {"base": str(base)}


def test_our_defaults_lose_to_the_users_flags(tmp_path):
    base = tmp_path / "cache"
    flags = f"floatX=float64,gcc.cxxflags=-O1,blas.ldflags=,compile.timeout=7,dnn.enabled=auto,base_compiledir={base}"
    expected = {"floatX": "float64", "cxxflags": "-O1", "ldflags": "", "timeout": 7, "dnn": "auto"}
    assert fresh(CONFIG, THEANO_FLAGS=flags).facts == expected | {"base": str(base)}


def test_a_setting_that_only_one_file_makes_leaves_the_others_at_our_defaults(tmp_path):
    (tmp_path / "mine").write_text("[blas]\nldflags = -lblas\n")
    facts = fresh(CONFIG, THEANORC=tmp_path / "mine").facts
    assert facts["ldflags"] == "-lblas"
    assert facts["floatX"] == "float32"


def test_blas_is_found_in_a_checkout_whose_path_has_spaces(tmp_path):
    code = f"""
    import os
    import scipy_openblas32
    folder = {str(tmp_path / "my files")!r}
    os.symlink(scipy_openblas32.get_lib_dir(), folder)
    scipy_openblas32.get_lib_dir = lambda: folder
    from kernels import backend
    theano = backend.load()
    x = theano.tensor.matrix()
    product = theano.function([x], theano.tensor.dot(x, x))
    facts["ops"] = [str(node.op) for node in product.maker.fgraph.toposort()]
    facts["product"] = product([[1, 2], [3, 4]]).tolist()
    """
    assert fresh(code).facts == {"ops": ["Dot22"], "product": [[7, 10], [15, 22]]}


ENVIRONMENT_AROUND_LOAD = """
import os, tempfile
before, mask = dict(os.environ), os.umask(0o027)
from kernels import backend
try:
    backend.load()
except ValueError as error:
    facts["error"] = str(error)
facts["changed"] = sorted(set(before.items()) ^ set(os.environ.items()))
facts["umask"] = os.umask(mask)
facts["left"] = os.listdir(tempfile.gettempdir())
"""


@pytest.mark.parametrize("flags", [None, "device=cuda,floatX=float64", "floatX=float31"])
def test_the_environment_is_put_back_after_loading_even_when_it_fails(tmp_path, flags):
    variables = {"THEANO_FLAGS": flags, "THEANORC": None if flags is None else tmp_path / "mine", "TMPDIR": tmp_path}
    ended = fresh(ENVIRONMENT_AROUND_LOAD, **variables)
    facts = ended.facts
    assert facts.pop("error", "").startswith('Invalid value ("float31")' if flags == "floatX=float31" else "")
    assert facts == {"changed": [], "umask": 0o027, "left": []}


def test_g6_without_a_temporary_directory_the_compile_cache_is_one():
    """As in a container that cannot be written to, or where the disk of all the usual places is full."""
    code = """
    import tempfile
    tempfile._candidate_tempdir_list = lambda: ["/proc/nowhere"]
    from kernels import backend
    facts |= {"cache": backend.load().config.compiledir, "temporary": tempfile.gettempdir()}
    """
    facts = fresh(code).facts
    assert facts["temporary"] == facts["cache"]


def test_a_gpu_that_a_parent_process_had_does_no_harm():
    """Theano refuses to start a device when it inherits this variable."""
    code = START + "import os\nfacts |= {'reason': device.reason, 'left': 'THEANO_GPU_IS_ALREADY_ACTIVE' in os.environ}"
    ended = fresh(code, THEANO_FLAGS=f"device={FLAG}", THEANO_GPU_IS_ALREADY_ACTIVE="Yes")
    assert "subprocess" not in ended.facts["reason"]
    assert not ended.facts["left"]


# ---- the compile cache


def test_s16_the_compile_cache_is_private_whatever_the_umask(tmp_path):
    code = """
    import os
    os.umask(0)
    from kernels import backend
    facts["cache"] = backend.load().config.compiledir
    """
    cache = Path(fresh(code, XDG_CACHE_HOME=tmp_path / "new").facts["cache"])
    assert cache.is_relative_to(tmp_path / "new" / "shardpress")
    assert cache.stat().st_mode & 0o777 == 0o700
    made = [path for path in (tmp_path / "new").rglob("*") if path.is_dir()]
    assert [path for path in made if path.stat().st_mode & 0o077] == []


def test_the_compile_caches_name_tells_theanos_and_numpys_versions(tmp_path):
    import numpy as np

    name = Path(fresh(CONFIG, XDG_CACHE_HOME=tmp_path).facts["base"]).name
    assert name == f"theano-1.0.5-numpy-{np.__version__}"


UNSAFE = """
from kernels import backend
from kernels.compilecache import UnsafeCompileCache
try:
    backend.load()
except UnsafeCompileCache as error:
    facts["error"] = str(error)
"""


@pytest.fixture
def trap(tmp_path):
    """A cache whose code tells when it runs: what Theano loads first of all, while it is imported."""
    cache, told = tmp_path / "base" / "cache", tmp_path / "told"
    for name in ("lazylinker_ext", "cutils_ext"):
        (cache / name).mkdir(parents=True, mode=0o700)
        (cache / name / "__init__.py").write_text(f"open({str(told)!r}, 'w').close()\n")
    cache.chmod(0o700)
    cache.parent.chmod(0o700)
    return cache, told


def flags_for(cache):
    return f"base_compiledir={cache.parent},compiledir_format={cache.name}"


def test_code_in_a_private_cache_runs_so_the_trap_works(trap):
    cache, told = trap
    fresh(UNSAFE, THEANO_FLAGS=flags_for(cache))
    assert told.exists()


@pytest.mark.parametrize(
    ("which", "mode", "phrase"),
    [
        ("cache", 0o770, "has mode 0770, expected 0700: Theano runs what it finds there. Run: chmod 700 {path}"),
        ("cache", 0o705, "has mode 0705, expected 0700"),
        (
            "base",
            0o770,
            "lies in {path} of mode 0770, so that others could put another in its place; expected no write",
        ),
        ("base", 0o702, "Run: chmod go-w {path}"),
    ],
)
def test_s16_a_cache_that_others_may_write_is_refused_before_anything_in_it_runs(trap, which, mode, phrase):
    cache, told = trap
    path = cache if which == "cache" else cache.parent
    path.chmod(mode)
    ended = fresh(UNSAFE, THEANO_FLAGS=flags_for(cache))
    assert phrase.format(path=path) in ended.facts["error"]
    assert not told.exists()


def test_a_sticky_folder_like_tmp_may_hold_a_private_cache(tmp_path):
    tmp_path.chmod(0o1777)
    assert fresh(UNSAFE, THEANO_FLAGS=f"base_compiledir={tmp_path}").facts == {}


# ---- falling back


FALL_BACK = """
import numpy as np
from dataclasses import asdict
from kernels import backend
devices = [backend.start(), backend.start(False), backend.start(require=False)]
facts["device"] = asdict(devices[0])
facts["text"] = str(devices[0])
facts["same"] = len(set(devices))
theano = backend.load()
weights = backend.shared(np.eye(3, dtype=np.float32), name="weights")
rows = theano.tensor.fmatrix()
product = theano.function([rows], theano.tensor.dot(rows, weights))
facts["product"] = product(np.arange(6, dtype=np.float32).reshape(2, 3)).tolist()
facts["operations"] = [type(node.op).__name__ for node in product.maker.fgraph.apply_nodes]
try:
    backend.start(require=True)
except backend.DeviceUnavailable as error:
    facts["error"] = str(error)
"""


@needs_pygpu
@without_a_card
def test_cuda_without_a_card_computes_on_the_cpu_after_one_warning_that_says_why():
    ended = fresh(FALL_BACK, THEANO_FLAGS="device=cuda")
    device = ended.facts["device"]
    assert (device["requested"], device["used"]) == ("cuda", "cpu")
    assert "no NVIDIA driver was found" in device["reason"]
    assert "libcuda.so" in device["reason"]
    assert ended.stderr.splitlines() == [f"device=cuda cannot be used, running on the CPU instead: {device['reason']}"]
    assert ended.facts["text"] == f"cpu ({device['name']}) instead of cuda: {device['reason']}"
    assert ended.facts["same"] == 1
    assert ended.facts["product"] == [[0, 1, 2], [3, 4, 5]]
    assert ended.facts["operations"] == ["Dot22"]
    assert ended.facts["error"] == f"device=cuda cannot be used: {device['reason']}"


REFUSED = """
from kernels import backend
for _ in range(2):
    try:
        backend.start({require})
    except backend.DeviceUnavailable as error:
        facts.setdefault("errors", []).append(str(error))
"""


@needs_pygpu
@without_a_card
@pytest.mark.parametrize(("require", "flags"), [("require=True", ""), ("", ",force_device=True")])
def test_a_device_that_is_required_is_an_error_instead_without_a_warning(require, flags):
    ended = fresh(REFUSED.format(require=require), THEANO_FLAGS=f"device=cuda{flags}")
    assert len(ended.facts["errors"]) == 2
    assert all("device=cuda cannot be used: no NVIDIA driver" in error for error in ended.facts["errors"])
    assert ended.stderr == ""


def test_force_device_in_a_file_means_the_same(tmp_path):
    (tmp_path / ".theanorc").write_text(f"[global]\ndevice = {FILE}\nforce_device = True\n")
    ended = fresh(REFUSED.format(require=""), HOME=tmp_path)
    assert [error.split(":")[0] for error in ended.facts["errors"]] == [f"device={FILE} cannot be used"] * 2


def test_missing_pygpu_is_named_with_what_installs_it():
    code = "import sys\nsys.modules['pygpu'] = None\n" + START + "facts |= {'used': device.used, 'why': device.reason}"
    ended = fresh(code, THEANO_FLAGS="device=cuda")
    assert ended.facts["used"] == "cpu"
    assert "pygpu is not installed; scripts/install_pygpu.sh puts it into" in ended.facts["why"]
    assert len(ended.stderr.splitlines()) == 1


def test_the_cpu_needs_no_pygpu_and_says_nothing():
    code = "import sys\nsys.modules['pygpu'] = None\n" + START + "facts |= {'used': device.used, 'text': str(device)}"
    ended = fresh(code, THEANO_FLAGS="device=cpu,force_device=True")
    assert ended.facts["used"] == "cpu"
    assert ended.facts["text"].startswith("cpu (")
    assert ended.stderr == ""


# ---- products


PRODUCTS = """
import pathlib
import numpy as np
from kernels.autoencoder import Autoencoder
from kernels.step import TrainingStep
autoencoder, rows = Autoencoder(5, 3), np.ones((4, 5), np.float32)
autoencoder.encode(rows)
TrainingStep(autoencoder, "momentum", 0.9, rows.dtype)(rows)
from kernels import backend
cache = backend.load().config.compiledir
mapped = {line.split()[-1] for line in pathlib.Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
modules = [pathlib.Path(name).read_bytes() for name in mapped if name.startswith(cache)]
facts["modules"] = len(modules)
facts["prefixed"] = sum(b"\\0scipy_sgemm_\\0" in module for module in modules)
facts["plain"] = sum(b"\\0sgemm_\\0" in module for module in modules)
import scipy_openblas32
facts["library"] = any(name.startswith(scipy_openblas32.get_lib_dir()) for name in mapped)
"""


def test_products_run_in_the_openblas_that_we_install():
    ended = fresh(PRODUCTS, THEANO_FLAGS="optimizer_excluding=fused")
    assert ended.stderr == ""  # Theano warns when it has no BLAS
    assert ended.facts["modules"] > 0
    assert ended.facts["prefixed"] > 0
    assert ended.facts["plain"] == 0
    assert ended.facts["library"]


# ---- cores

CORES = """
import ctypes, os, scipy_openblas32
from kernels import backend
library = ctypes.CDLL(scipy_openblas32.get_lib_dir() + "/libscipy_openblas.so")
library.scipy_openblas_set_num_threads(2)
backend.start()
facts["threads"] = []
for n_flops in (10**6, 10**9, 10**6):
    backend.use_cores_for(n_flops)
    facts["threads"].append(library.scipy_openblas_get_num_threads())
facts["cores"] = len(os.sched_getaffinity(0))
"""


def test_small_products_take_one_core_and_large_ones_all():
    facts = fresh(CORES, OPENBLAS_NUM_THREADS=None).facts
    assert facts["threads"] == [1, facts["cores"], 1]


def test_the_users_number_of_blas_threads_wins():
    assert fresh(CORES, OPENBLAS_NUM_THREADS="2").facts["threads"] == [2, 2, 2]
