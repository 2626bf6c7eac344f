#!/usr/bin/env bash
# Makes .venv-readers/<version> for each later Python that is here, with a wheel of this checkout and what it needs there,
# and no more. Where there is none, or no network, the tests in them skip.
set -euo pipefail
cd "$(dirname "$0")/.."

candidates() {
    type -aP "python$1" || true
    compgen -G "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1*/bin/python$1" || true
    uv python find "$1" 2>/dev/null || true
}

# A pyenv shim may stand for nothing, and Debian's python3 come without venv.
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

quiet=(--quiet --no-input --disable-pip-version-check)
rm -rf .venv-readers build # where files would lie that are no longer part of the code
mkdir .venv-readers
.venv/bin/python -m pip "${quiet[@]}" wheel --no-deps --no-build-isolation --wheel-dir .venv-readers . ||
    echo "readers: no wheel could be made" >&2
for version in 3.12 3.13 3.14; do
    # Of a half one the tests would take the interpreter for a whole one.
    { make_venv "$version" && install_packages "$version"; } || rm -rf ".venv-readers/$version"
done
touch .venv-readers/.complete
