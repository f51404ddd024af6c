#!/usr/bin/env bash
# Trains in stages on this machine, each on the runs of those before: train/stages.sh [--config.KEY=VALUE ...]
#
# Set these three. Stages are arguments of the config, whose own defaults say which run stands on which: they lie in
# $FOLDER as runs/CONFIG/STAGE. Seen: "stage cmt (2 of 3)", then the lines of that run. Options are those of every stage.
# Given again, complete stages say so, and it goes on from the newest checkpoint of the one that is not; a stage that
# fails, that another config or other weights began, or that is stopped and saves, ends it. CONFIG=rae STAGES="encoder
# decoder" makes the autoencoder that mf_rae asks for.
set -euo pipefail
CONFIG=${CONFIG:-mf_rae}
STAGES=${STAGES:-teacher cmt mfd} # in their order; mf_rae has mft too
FOLDER=${FOLDER:-$PWD}            # where runs/ is, or will be

cd "$FOLDER"
read -ra stages <<<"$STAGES"
for number in "${!stages[@]}"; do
    stage=${stages[$number]} workdir=runs/$CONFIG/${stages[$number]}
    echo "stage $stage ($((number + 1)) of ${#stages[@]})"
    python -m flowjax.train --config="$CONFIG:$stage" --workdir="$workdir" "$@"
    if [[ ! -e $workdir/report.json ]]; then # a run that is stopped saves, and ends well
        echo "stage $stage was stopped before its end; the same command goes on" >&2
        exit 1
    fi
done
