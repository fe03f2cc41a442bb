#!/usr/bin/env bash
# What the run in runs/main changes against the revision $BASE (if there is none such: the commit before), as
# build/comment.md, build/comment.json and in the job's summary. Exit code: that of `fraudnb diff --gate`.
#   BASE=origin/main .github/scripts/compare.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p build

base=${BASE:-HEAD^1}
# the first push to a branch has no commit before it, and a forced one may have taken that away
git rev-parse --verify --quiet --end-of-options "$base^{commit}" >/dev/null || base=HEAD^1
head=runs/main
# a step that stopped before its notebook began has left nothing there: the revision says why
[ -n "$(find runs/main -name '*.ipynb' -print -quit 2>/dev/null)" ] || head=HEAD

code=0
fraudnb diff "$base" "$head" --gate --out build/comment.md || code=$?
if [ -f build/comment.md ]; then
    cat build/comment.md >>"${GITHUB_STEP_SUMMARY:-/dev/stdout}"
fi
exit "$code"
