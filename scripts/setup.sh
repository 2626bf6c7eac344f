#!/usr/bin/env bash
# Create .venv with everything that shardpress needs, and install system packages if possible (as root on Debian).
#
#     scripts/setup.sh            (or: make setup)
#
# The script searches for Python 3.11; PYTHON=/path/to/python3.11 chooses one. It can be run again at any time.
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
        say "updating the package lists of apt-get"
        apt-get -qq update >/dev/null || true # the packages may come from another source
        lists_are_fresh=yes
    fi
    say "installing $* with apt-get"
    local output
    if ! output=$(DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=60 \
        install -y --no-install-recommends "$@" 2>&1); then
        say "apt-get failed: ${output##*$'\n'}"
        return 1
    fi
}

# libgpuarray opens its libraries by these names, which on Debian only the -dev packages install.
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

# Set `missing` to Debian's names of the packages that are not installed.
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
        g++) echo "Theano cannot compile (any C++ compiler with the name g++ works)" ;;
        dataset-fashion-mnist) echo "the sample data are scikit-learn's digits instead of Fashion-MNIST" ;;
        *) echo "OpenCL cannot be used, and the tests of pygpu are skipped" ;;
    esac
}

system_packages() {
    local package
    find_missing
    if can_install; then
        for package in "${missing[@]}"; do
            apt_install "$package" || true # still missing packages are reported below
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
    if [ -x .venv/bin/python ]; then echo "$root/.venv/bin/python"; fi # the interpreter of an earlier set-up
    type -aP python3.11 python3 || true
    compgen -G "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/3.11*/bin/python3.11" || true
    uv python find 3.11 2>/dev/null || true
}

# Print the path of the interpreter of $1 if shardpress can run on it; otherwise fail and print the reason.
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
# For a virtual environment this is its base interpreter, because .venv itself may be replaced.
print(sys._base_executable)
END
}

# Set `python`, or `rejected` to one line for each candidate.
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
setup: no usable Python 3.11 was found. Candidates:
${rejected:-    none: no python3 in PATH, pyenv or uv
}setup: ways to install one:
    Debian 12:  sudo apt-get install python3.11 python3.11-venv python3.11-dev
    pyenv:      PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install 3.11
    uv:         uv python install 3.11
setup: then run this script again. PYTHON=/path/to/python3.11 chooses one in another place.
END
    exit 69
}

# --- the virtual environment -----------------------------------------------------------------------------------------

# The stamp contains the path of the checkout, because an environment cannot be moved. Without a stamp, an earlier
# set-up was interrupted.
venv_is_whole() {
    [ "$(cat "$stamp" 2>/dev/null)" = "$root" ] && .venv/bin/python -c 'import pip' 2>/dev/null
}

make_venv() {
    if ! venv_is_whole; then
        say "creating .venv with $python"
        rm -rf .venv
        "$python" -m venv "$root/.venv"
    fi
    rm -f "$stamp"
    say "installing the Python packages of constraints.txt (a minute or two the first time)"
    local pip=(.venv/bin/python -m pip --quiet --no-input --disable-pip-version-check install -c constraints.txt)
    # First install a pip that supports --build-constraint: Theano is built from source, with a tested setuptools.
    "${pip[@]}" pip
    # setuptools warns about editable installs. A Python from elsewhere would use the C compiler that it was built with.
    PYTHONWARNINGS=ignore CC=${CC:-gcc} "${pip[@]}" --build-constraint constraints.txt -e '.[test]'
}

choose_python
system_packages
make_venv
pygpu="pygpu"
scripts/install_pygpu.sh || pygpu="no pygpu (everything runs on the CPU, and the tests of pygpu are skipped)"
echo "$root" >"$stamp"
say "done. .venv has $(.venv/bin/python --version), shardpress with its packages, and $pygpu."
say "The command is .venv/bin/shardpress."
