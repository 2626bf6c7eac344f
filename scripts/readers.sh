#!/usr/bin/env bash
# Create .venv-readers/<version> for each supported Python of this machine, with a wheel of this checkout and its
# dependencies only, and .venv-readers/<version>-run, which also has Theano. The tests use those whose version is not
# the version of .venv. Without such a Python or without a network, these tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

candidates() {
    type -aP "python$1" || true
    compgen -G "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1*/bin/python$1" || true
    uv python find "$1" 2>/dev/null || true
}

# A pyenv shim may have no interpreter, and Debian's python3 may have no venv.
make_venv() {
    local python
    while read -r python; do
        "$python" -c 'import ensurepip' 2>/dev/null && "$python" -m venv --clear ".venv-readers/$1" && return
    done < <(candidates "$1")
    return 1
}

install_packages() {
    echo "readers: installing shardpress as a reader for Python $1"
    ".venv-readers/$1/bin/pip" "${quiet[@]}" install --only-binary :all: .venv-readers/*.whl
}

# The environment for runs finds all packages but Theano in the environment for readers.
install_theano() {
    local reader=$PWD/.venv-readers/$1 environment=$PWD/.venv-readers/$1-run
    echo "readers: installing Theano for Python $1"
    "$reader/bin/python" -m venv --without-pip "$environment" &&
        echo "$reader/lib/python$1/site-packages" >"$environment/lib/python$1/site-packages/reader.pth" &&
        "$environment/bin/python" -m shardpress setup-theano >/dev/null
}

quiet=(--quiet --no-input --disable-pip-version-check)
rm -rf .venv-readers build # build/ may contain files that are no longer part of the code
mkdir .venv-readers
.venv/bin/python -m pip "${quiet[@]}" wheel --no-deps --no-build-isolation --wheel-dir .venv-readers . ||
    echo "readers: cannot build a wheel" >&2
for version in 3.11 3.12 3.13 3.14; do
    # The tests would use the interpreter of an incomplete environment.
    if make_venv "$version" && install_packages "$version"; then
        install_theano "$version" || rm -rf ".venv-readers/$version-run"
    else
        rm -rf ".venv-readers/$version"
    fi
done
touch .venv-readers/.complete
