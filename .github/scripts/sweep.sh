#!/usr/bin/env bash
# A sweep in parts on machines that share nothing but files that are handed on:
#   PARTS=4 sweep.sh parts                                      4 parts as JSON, into GITHUB_OUTPUT
#   sweep.sh prepare                                            build/data.tar.gz: what all parts start from
#   NOTEBOOK=03_train THEN=04_evaluate GRID='model=a,b seed=0,1' BY=valid_average_precision
#     PART=1/4 sweep.sh part                                    build/runs-1.tar.gz
#     sweep.sh gather                                           the parts in build/ as one leaderboard in runs/sweep
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p build

sweep() {
    local words=() one
    read -ra varied <<<"$GRID"
    for one in "${varied[@]}"; do words+=(-g "$one"); done
    fraudnb sweep "$NOTEBOOK" --then "$THEN" --by "$BY" "${words[@]}" "$@"
}

case "$1" in
parts)
    [[ "$PARTS" =~ ^[1-9][0-9]?$ ]] || { echo "PARTS must be a number below 100, not '$PARTS'." >&2; exit 2; }
    printf 'parts=[%s]\n' "$(seq -f "\"%g/$PARTS\"" -s , "$PARTS")" >>"${GITHUB_OUTPUT:-/dev/stdout}"
    ;;
prepare)
    dvc repro 02_preprocess
    # a run remembers its inputs by size and time, which this format keeps to the nanosecond
    tar --format=posix -czf build/data.tar.gz data
    ;;
part)
    tar -xzf build/data.tar.gz
    code=0
    sweep --shard "$PART" || code=$?
    tar --format=posix -czf "build/runs-${PART%%/*}.tar.gz" runs/sweep
    exit "$code"
    ;;
gather)
    tar -xzf build/data.tar.gz
    for part in build/runs-*.tar.gz; do tar -xzf "$part"; done
    # what is done is not run again; what a lost part has left undone is
    sweep | tee build/leaderboard.txt
    printf '```text\n%s\n```\n' "$(cat build/leaderboard.txt)" >>"${GITHUB_STEP_SUMMARY:-/dev/stdout}"
    ;;
*)
    echo "sweep.sh parts, prepare, part or gather, not '$1'." >&2
    exit 2
    ;;
esac
