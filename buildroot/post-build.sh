#!/bin/sh
# Buildroot calls this with the root filesystem and BR2_ROOTFS_POST_SCRIPT_ARGS, the board's name.
set -eu
here=$(dirname "$0")
exec python3 -B "$here/../scripts/lib/builder.py" rootfs "$2" "$1"
