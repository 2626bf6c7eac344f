#!/usr/bin/env bash
# Makes .venv with everything that shardpress needs, and installs the system packages where it can.
#
#     scripts/setup.sh            (or: make setup)
#
# It finds a Python 3.11 by itself; PYTHON=/path/to/python3.11 names one. Running it again is safe at any time.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(pwd -P)
stamp=.venv/.setup-complete

say() {
    echo "setup: $*"
}

# --- system packages -------------------------------------------------------------------------------------------------

can_install() {
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]
}

lists_are_fresh=no
apt_install() {
    if [ "$lists_are_fresh" = no ]; then
        say "asking apt-get for its package lists"
        apt-get -qq update >/dev/null || true # an unreachable source need not be the one that matters
        lists_are_fresh=yes
    fi
    say "installing $* with apt-get"
    local output
    if ! output=$(DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=60 \
        install -y --no-install-recommends "$@" 2>&1); then
        say "apt-get could not: ${output##*$'\n'}"
        return 1
    fi
}

# libgpuarray opens its libraries by these bare names, which on Debian only the -dev packages bring.
has_library() {
    "$python" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1" 2>/dev/null
}

has_opencl_platform() {
    "$python" - 2>/dev/null <<'END'
import ctypes, sys

count = ctypes.c_uint()
ctypes.CDLL("libOpenCL.so.1").clGetPlatformIDs(0, None, ctypes.byref(count))
sys.exit(count.value == 0)
END
}

# Fills `missing` with Debian's names of the packages whose contents are not there.
find_missing() {
    missing=()
    command -v g++ >/dev/null || missing+=(g++)
    has_opencl_platform || missing+=(pocl-opencl-icd)
    has_library libOpenCL.so || missing+=(ocl-icd-opencl-dev)
    has_library libclblast.so || missing+=(libclblast-dev)
    [ -e /usr/share/datasets/fashion-mnist ] || missing+=(dataset-fashion-mnist)
}

without() {
    case $1 in
        g++) echo "Theano cannot compile (any C++ compiler called g++ will do)" ;;
        dataset-fashion-mnist) echo "the sample data are scikit-learn's digits instead of Fashion-MNIST" ;;
        *) echo "OpenCL cannot be used, and the tests of the pygpu path skip" ;;
    esac
}

system_packages() {
    local package
    find_missing
    if can_install; then
        for package in "${missing[@]}"; do
            apt_install "$package" || true # what is still missing is told below
        done
        find_missing
    fi
    [ ${#missing[@]} -gt 0 ] || return 0
    for package in "${missing[@]}"; do
        say "missing: $package. Without it $(without "$package")."
    done
    say "on Debian or Ubuntu: sudo apt-get install ${missing[*]}"
    command -v g++ >/dev/null || exit 69
}

# --- Python ----------------------------------------------------------------------------------------------------------

candidates() {
    if [ -n "${PYTHON:-}" ]; then echo "$PYTHON"; fi
    if [ -x .venv/bin/python ]; then echo "$root/.venv/bin/python"; fi # what an earlier set-up found
    type -aP python3.11 python3 || true
    compgen -G "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/3.11*/bin/python3.11" || true
    uv python find 3.11 2>/dev/null || true
}

# Prints the path of the interpreter behind $1 when shardpress can run on it, else fails and says why not.
inspect() {
    command -v "$1" >/dev/null || { echo "is not a program" && return 1; }
    "$1" - <<'END'
import os, sys, sysconfig

if sys.version_info[:2] != (3, 11):
    sys.exit("is Python %d.%d" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError as error:
    sys.exit("has no module %s (Debian: python3.11-venv)" % error.name)
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    sys.exit("has no Python.h, which Theano compiles against (Debian: python3.11-dev)")
folders = [sysconfig.get_config_var("LIBDIR"), os.path.dirname(sysconfig.get_path("stdlib"))]
if not any(os.path.exists(os.path.join(folder, "libpython3.11.so")) for folder in folders):
    sys.exit("has no libpython3.11.so, which Theano links against (pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)")
# Of a virtual environment, the interpreter below it: the environment may be the .venv that is made anew.
print(sys._base_executable)
END
}

# Sets `python`, or `rejected` to a line for each candidate.
find_python() {
    local candidate answer
    rejected=
    while read -r candidate; do
        if answer=$(inspect "$candidate" 2>&1); then
            python=$answer
            return 0
        fi
        answer="$candidate: ${answer%%$'\n'*}"
        rejected+="    $answer"$'\n'
        if [ "$candidate" = "${PYTHON:-}" ]; then say "not using PYTHON=$answer"; fi
    done < <(candidates)
    return 1
}

choose_python() {
    find_python && return
    if can_install && apt_install python3.11 python3.11-venv python3.11-dev && find_python; then
        return
    fi
    cat >&2 <<END
setup: found no usable Python 3.11. Looked at:
${rejected:-    nothing: no python3 in PATH, pyenv or uv
}setup: ways to get one:
    Debian 12:  sudo apt-get install python3.11 python3.11-venv python3.11-dev
    pyenv:      PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install 3.11
    uv:         uv python install 3.11
setup: then run this again; PYTHON=/path/to/python3.11 names one that lies elsewhere.
END
    exit 69
}

# --- the virtual environment -----------------------------------------------------------------------------------------

# The stamp holds the checkout's path, since an environment does not survive being moved. One without a stamp was
# interrupted while it was made.
venv_is_whole() {
    [ "$(cat "$stamp" 2>/dev/null)" = "$root" ] && .venv/bin/python -c 'import pip' 2>/dev/null
}

make_venv() {
    if ! venv_is_whole; then
        say "making .venv with $python"
        rm -rf .venv
        "$python" -m venv "$root/.venv"
    fi
    rm -f "$stamp"
    say "installing the Python packages of constraints.txt (a minute or two the first time)"
    local pip=(.venv/bin/python -m pip --quiet --no-input --disable-pip-version-check install -c constraints.txt)
    # First a pip that knows --build-constraint: Theano is built from source, with a setuptools that was tested too.
    "${pip[@]}" pip
    # setuptools would warn at length that an editable install is one. And a Python from elsewhere would take the C compiler
    # that it was made with.
    PYTHONWARNINGS=ignore CC=${CC:-gcc} "${pip[@]}" --build-constraint constraints.txt -e '.[test]'
}

choose_python
system_packages
make_venv
pygpu="pygpu"
scripts/install_pygpu.sh || pygpu="no pygpu (everything runs on the CPU, and the tests of the pygpu path skip)"
echo "$root" >"$stamp"
say "done. .venv holds $(.venv/bin/python --version), shardpress with its packages, and $pygpu. The command is .venv/bin/shardpress."
