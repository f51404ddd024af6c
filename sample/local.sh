#!/usr/bin/env bash
# Samples on this machine, on all its devices: sample/local.sh runs/digits samples.npz [--num=1000 --steps=5 ...]
set -euo pipefail
if [[ $# -lt 2 ]]; then
    echo "usage: $0 WORKDIR OUT.npz [--FLAG=VALUE ...]" >&2
    exit 2
fi
exec python -m flowjax.sample --workdir="$1" --out="$2" "${@:3}"
