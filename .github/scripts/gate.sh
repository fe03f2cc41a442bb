#!/usr/bin/env bash
# Compares the model in models/main with the one deployed at $MODEL_URL, its card and its scores of the same test rows.
# Exit code 3 when it is worse than params.yaml allows.
#   MODEL_URL=s3://bank/model .github/scripts/gate.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p build

python .github/scripts/bundle.py fetch "$MODEL_URL" build/deployed
code=0
if [ -d build/deployed ]; then
    fraudnb diff build/deployed runs/main --gate --out build/gate.md || code=$?
else
    echo "No model is deployed at $MODEL_URL yet: there is nothing that this one could be worse than." >build/gate.md
fi
cat build/gate.md >>"${GITHUB_STEP_SUMMARY:-/dev/stdout}"
exit "$code"
