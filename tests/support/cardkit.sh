#!/bin/sh
# Where a CUDA card and its driver are: unpack what lies beside this file, and do what `make card` does in a checkout.
#
#     sh card-kit/card.sh                      into shardpress-card/NAME OF THE CARD/, in nine minutes at most
#     sh card-kit/card.sh --quick              arguments are those of scripts/card.py
#     KIT=/scratch/kit sh card-kit/card.sh     unpacked there
#     VARIABLES="CUDA_VISIBLE_DEVICES=1" sh card-kit/card.sh
#     IN_PLACE=1 sh card-kit/card.sh           as root in a container to be thrown away: into /, beside what is there
#
# Neither Python, nor a compiler, nor a network is needed. Typed again, it goes on where it was.
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

# The driver is the machine's: its libraries go where the image looks.
for name in libcuda.so.1 libnvidia-ptxjitcompiler.so.1 libnvidia-ml.so.1 libnvidia-gpucomp.so; do
    for path in $(ldconfig -p 2>/dev/null | awk -v name="$name" 'index($1, name) == 1 && /x86-64/ { print $NF }'); do
        cp -Lf "$path" "$kit/usr/lib/x86_64-linux-gnu/"
    done
done
smi=$(command -v nvidia-smi || true)
[ -z "$smi" ] || cp -Lf "$smi" "$kit/usr/bin/nvidia-smi"

# In a view of the file system of its own, as root or as who has root's rights in there alone.
own="--mount"
[ "$(id -u)" = 0 ] || own="--user --map-root-user --mount"
if ! unshare $own true; then
    echo "card: this machine allows no mounts here. As root, in a container that is thrown away: IN_PLACE=1 sh $0" >&2
    exit 69
fi
mkdir -p "$kit/results"
exec unshare $own sh -c '
    kit=$0 results=$1 clean=$2 inside=$3; shift 3
    for folder in dev sys proc; do mount --rbind "/$folder" "$kit/$folder"; done
    mount --bind "$results" "$kit/results"
    exec chroot "$kit" $clean /bin/sh -c "$inside" sh --output /results "$@"' "$kit" "$results" "$clean" "$inside" "$@"
