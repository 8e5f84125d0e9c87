#!/bin/sh
# Runs a command with loopback as its only network, where the system lets us (Linux, unshare); with
# VFT_MUST_BE_OFFLINE set, there only.
if unshare -rn ip link set lo up 2>/dev/null; then
    exec unshare -rn sh -c 'ip link set lo up && exec "$@"' sh env VFT_TEST_OFFLINE=1 "$@"
fi
echo "offline.sh: no network namespace to be had, so the network stays on" >&2
[ -z "$VFT_MUST_BE_OFFLINE" ] || exit 1
exec "$@"
