#!/bin/sh
# Unpack the files next to this one, and do the work of `make card`, on a machine with a CUDA card and its driver.
#
#     sh card-kit/card.sh                      write to shardpress-card/NAME OF THE CARD/, in at most nine minutes
#     sh card-kit/card.sh --quick              with any arguments of scripts/card.py
#     KIT=/scratch/kit sh card-kit/card.sh     unpack into this directory
#     VARIABLES="CUDA_VISIBLE_DEVICES=1" sh card-kit/card.sh
#     IN_PLACE=1 sh card-kit/card.sh           as root in a temporary container: unpack into /, next to existing files
#
# The script needs neither Python, nor a compiler, nor a network. The same command resumes after an interruption.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
kit=${KIT:-$PWD/shardpress-kit}
results=${RESULTS:-$PWD/shardpress-card}
[ -z "${IN_PLACE:-}" ] || kit=/

mkdir -p "$kit" "$results"
if ! [ -e "$kit/shardpress-kit-complete" ]; then
    echo "unpacking into $kit"
    cat "$here"/kit.tar.gz.* | tar -C "$kit" -xz --no-same-owner ${IN_PLACE:+--skip-old-files}
    touch "$kit/shardpress-kit-complete"
fi

inside='cd /usr/src/shardpress && exec /opt/shardpress/bin/python scripts/card.py "$@"'
clean="/usr/bin/env -i HOME=/root PATH=/opt/shardpress/bin:/usr/local/bin:/usr/bin:/bin TERM=dumb ${VARIABLES:-}"
if [ "$kit" = / ]; then
    ldconfig
    exec $clean /bin/sh -c "$inside" sh --output "$results" "$@"
fi

# Copy the libraries of the machine's driver to the directory in which the image searches for them.
for name in libcuda.so.1 libnvidia-ptxjitcompiler.so.1 libnvidia-ml.so.1 libnvidia-gpucomp.so; do
    for path in $(ldconfig -p 2>/dev/null | awk -v name="$name" 'index($1, name) == 1 && /x86-64/ { print $NF }'); do
        cp -Lf "$path" "$kit/usr/lib/x86_64-linux-gnu/"
    done
done
smi=$(command -v nvidia-smi || true)
[ -z "$smi" ] || cp -Lf "$smi" "$kit/usr/bin/nvidia-smi"

# Use a private mount namespace, as root or with a user namespace.
own="--mount"
[ "$(id -u)" = 0 ] || own="--user --map-root-user --mount"
if ! unshare $own true; then
    echo "card: this machine does not allow mounts here. As root in a temporary container, run: IN_PLACE=1 sh $0" >&2
    exit 69
fi
mkdir -p "$kit/results"
exec unshare $own sh -c '
    kit=$0 results=$1 clean=$2 inside=$3; shift 3
    for folder in dev sys proc; do mount --rbind "/$folder" "$kit/$folder"; done
    mount --bind "$results" "$kit/results"
    exec chroot "$kit" $clean /bin/sh -c "$inside" sh --output /results "$@"' "$kit" "$results" "$clean" "$inside" "$@"
