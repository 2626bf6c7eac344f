#!/usr/bin/env bash
# Create .venv with everything that shardpress needs, and install system packages if possible (as root on Debian).
#
#     scripts/setup.sh            (or: make setup)
#
# The script takes the newest Python, from 3.14 to 3.11, for which pygpu can be installed (see install_pygpu.sh), or the
# newest of all if there is no such Python. PYTHON=3.13 or PYTHON=/path/to/python3.13 chooses one. The script can be run
# again at any time. It then keeps the Python of .venv if .venv has pygpu, or if PYTHON chose this Python.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(pwd -P)
stamp=.venv/.setup-complete
requested=.venv/.python-requested # this file exists if .venv was set up with PYTHON

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

versions=(3.14 3.13 3.12 3.11)

# Print the paths of interpreters that may have version $1.
interpreters() {
    case ${PYTHON:-} in
        "" | 3.*) ;;
        *) echo "$PYTHON" && return ;;
    esac
    if [ -x .venv/bin/python ]; then echo .venv/bin/python; fi # unless the version changes, .venv is kept
    type -aP "python$1" python3 || true
    compgen -G "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1*/bin/python$1" || true
    uv python find "$1" 2>/dev/null || true
}

# Print the path of the interpreter of $2 if it has version $1 and shardpress can run on it; otherwise fail and print
# the reason.
inspect() {
    command -v "$2" >/dev/null || { echo "is not a program" && return 1; }
    "$2" - "$1" <<'END'
import os, sys, sysconfig

version = "%d.%d" % sys.version_info[:2]
if version != sys.argv[1]:
    sys.exit("is Python " + version)
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit("is a free-threaded build of Python, which is not supported")
try:
    import ensurepip, venv
except ImportError as error:
    sys.exit("has no module %s (Debian: python%s-venv)" % (error.name, version))
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    sys.exit("has no Python.h, which Theano compiles against (Debian: python%s-dev)" % version)
# For a virtual environment this is its base interpreter, because .venv itself may be replaced.
print(sys._base_executable)
END
}

# Set `python` and `version` to the first usable interpreter of the versions $@. `rejected` gets one line for each other
# candidate.
rejected=
find_python() {
    local each candidate answer
    for each in "$@"; do
        while read -r candidate; do
            if answer=$(inspect "$each" "$candidate" 2>&1); then
                python=$answer
                version=$each
                return 0
            fi
            answer="$candidate: ${answer%%$'\n'*}"
            case $rejected in *"$answer"*) continue ;; esac
            rejected+="    $answer"$'\n'
        done < <(interpreters "$each")
    done
    return 1
}

# Find a Python, or exit.
require_python() {
    find_python "${versions[@]}" && return
    # Debian's own version. Its packages without a number may be installed without the modules that venv needs.
    if [ -z "${PYTHON:-}" ] && can_install && apt_install python3 python3-venv python3-dev &&
        find_python "${versions[@]}"; then
        return
    fi
    cat >&2 <<END
setup: no usable Python was found, expected ${PYTHON:-one of ${versions[*]}}. Candidates:
${rejected:-    none: no python3 in PATH, pyenv or uv
}setup: ways to install one:
    Debian and Ubuntu:  sudo apt-get install python3 python3-venv python3-dev
    pyenv:              pyenv install 3.13
    uv:                 uv python install 3.13
setup: then run this script again. PYTHON=/path/to/python3.13 chooses one in another place.
END
    exit 69
}

find_requested_python() {
    if [[ $PYTHON == 3.* ]]; then
        if [[ " ${versions[*]} " != *" $PYTHON "* ]]; then
            say "PYTHON=$PYTHON, expected one of ${versions[*]}, or the path of an interpreter" >&2
            exit 64
        fi
        versions=("$PYTHON")
    fi
    require_python
    why="chosen by PYTHON=$PYTHON"
}

# Find the Python of .venv, or fail if another one may be better.
find_python_of_venv() {
    if [ ! -e "$requested" ] && ! has_pygpu; then return 1; fi
    PYTHON=.venv/bin/python find_python "${versions[@]}" || return
    why="as before"
}

find_newest_python() {
    require_python
    why="the newest on this machine"
    download_pygpu
    if ! can_install_pygpu && find_python "${pygpu_versions[@]}"; then
        why="the newest for which pygpu can be installed. $pygpu_problem"
    fi
}

# Set `python` and `version`, and report them in one line. This needs the network only if .venv has no pygpu.
choose_python() {
    local why
    if [ -n "${PYTHON:-}" ]; then
        find_requested_python
    else
        find_python_of_venv || find_newest_python
    fi
    if ! venv_is_whole || ! has_pygpu; then
        download_pygpu
        can_install_pygpu || why+=", without pygpu. $pygpu_problem"
    fi
    say "Python $version, $why"
}

# --- pygpu -----------------------------------------------------------------------------------------------------------

has_pygpu() {
    .venv/bin/python -I -c 'import pygpu' 2>/dev/null
}

# Download the files of pygpu into `downloads`. Set `pygpu_versions` to the versions of Python for which these files are
# sufficient, and `pygpu_problem` to the reason if they are not sufficient for all.
downloads=
download_pygpu() {
    [ -z "$downloads" ] || return 0
    say "downloading pygpu"
    downloads=$(mktemp -d)
    trap 'rm -rf "$downloads"' EXIT
    case $(scripts/install_pygpu.sh --download "$downloads" 2>"$downloads/problem") in
        all) pygpu_versions=("${versions[@]}") ;;
        3.11) pygpu_versions=(3.11) ;;
        *) pygpu_versions=() ;;
    esac
    pygpu_problem=$(head -n 1 "$downloads/problem")
}

can_install_pygpu() {
    [[ " ${pygpu_versions[*]} " == *" $version "* ]]
}

install_pygpu() {
    if [ -z "$downloads" ]; then
        scripts/install_pygpu.sh
    else
        can_install_pygpu && scripts/install_pygpu.sh --from "$downloads"
    fi
}

# --- the virtual environment -----------------------------------------------------------------------------------------

# The stamp contains the path of the checkout, because an environment cannot be moved. Without a stamp, an earlier
# set-up was interrupted.
venv_is_whole() {
    [ "$(cat "$stamp" 2>/dev/null)" = "$root" ] && .venv/bin/python -c 'import pip' 2>/dev/null &&
        [ "$(.venv/bin/python -c 'import sys; print(sys._base_executable)')" = "$python" ]
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
    # First install a pip that supports --build-constraint: packages are built from source with a tested setuptools.
    "${pip[@]}" pip
    # setuptools warns about editable installs. A Python from elsewhere would use the C compiler that it was built with.
    PYTHONWARNINGS=ignore CC=${CC:-gcc} "${pip[@]}" --build-constraint constraints.txt -e '.[test]'
    # Python asks the finder of an editable installation last, after a directory `shardpress` next to the user's script,
    # for example a clone. A .pth file puts the source roots on the search path.
    local packages
    packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$root/pipeline" "$root/kernels" >"$packages/shardpress.pth"
    .venv/bin/python -m shardpress setup-theano >/dev/null
}

choose_python
system_packages
make_venv
pygpu="pygpu"
install_pygpu || pygpu="no pygpu (everything runs on the CPU, and the tests of pygpu are skipped)"
if [ -n "${PYTHON:-}" ]; then touch "$requested"; fi
echo "$root" >"$stamp"
say "done. .venv has $(.venv/bin/python --version), shardpress with its packages, and $pygpu."
say "The command is .venv/bin/shardpress."
