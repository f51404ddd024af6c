#!/usr/bin/env bash
# Trains on all hosts of a TPU VM: train/tpu_pod.sh [--config.KEY=VALUE ...], from your own machine with gcloud.
#
# Set these three (TPU and ZONE as in `gcloud compute tpus tpu-vm list`; WORKDIR in a bucket that is mounted on all hosts,
# or on a shared disk). Seen: "TPU pod: 8 processes, 32 devices", then the lines of the first host; the others write to
# $WORKDIR/logs/. Given again it goes on from the newest checkpoint.
set -euo pipefail
TPU=${TPU:?name of the TPU VM}
ZONE=${ZONE:?its zone}
WORKDIR=${WORKDIR:?a folder that all hosts see}
CONFIG=${CONFIG:-digits}
FOLDER=${FOLDER:-flowjax} # the checkout on the hosts, with its environment in .venv

printf -v command '%q ' python -m flowjax.train --config="$CONFIG" --workdir="$WORKDIR" "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd $FOLDER && . .venv/bin/activate && $command"
