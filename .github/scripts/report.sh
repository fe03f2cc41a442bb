#!/usr/bin/env bash
# The report of the run or sweep $1 (main if left out) as a site in build/site, its metrics in the job's summary.
#   .github/scripts/report.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
run=${1:-main}

if [ -f "runs/$run/metrics.json" ]; then
    printf '```text\n%s\n```\n' "$(COLUMNS=120 fraudnb metrics "$run")" >>"${GITHUB_STEP_SUMMARY:-/dev/stdout}"
fi
fraudnb report "runs/$run" --out build/site
