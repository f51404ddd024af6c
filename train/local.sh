#!/usr/bin/env bash
# Trains on this machine, on all its devices: train/local.sh digits runs/digits [--config.train.steps=100 ...]
set -euo pipefail
if [[ $# -lt 2 ]]; then
    echo "usage: $0 CONFIG WORKDIR [--config.KEY=VALUE ...]" >&2
    exit 2
fi
exec python -m flowjax.train --config="$1" --workdir="$2" "${@:3}"
