#!/usr/bin/env bash
# The pipeline on the table at $DATA_URL; results that the DVC remote at $DVC_URL has are taken, new ones pushed there.
#   DATA_URL=s3://bank/transactions.parquet DVC_URL=s3://bank/dvc .github/scripts/real-data.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
: "${DATA_URL:?the table: s3://BUCKET/KEY}" "${DVC_URL:?the DVC remote: s3://BUCKET/PREFIX}"
[[ "$DATA_URL" =~ ^[A-Za-z0-9:/._-]+$ ]] || { echo "DATA_URL has characters that no table's address has." >&2; exit 2; }

dvc remote modify --local storage url "$DVC_URL"
sed -i "s|^  source: .*|  source: \"$DATA_URL\"|" params.yaml
# dvc.lock says what the last run made of which notebooks, values and data; what still holds is not made again
python .github/scripts/bundle.py load "$DVC_URL/dvc.lock" dvc.lock
dvc pull --quiet --allow-missing || echo "Not all results are in $DVC_URL: what is missing is made anew."
# DVC cannot see that a file on S3 has changed: the table is fetched in any case, and what follows only if it has
dvc repro --force --single-item source@00_download 00_download
dvc repro
fraudnb metrics
printf '```text\n%s\n```\n' "$(COLUMNS=120 fraudnb metrics)" >>"${GITHUB_STEP_SUMMARY:-/dev/stdout}"
dvc push
python .github/scripts/bundle.py save dvc.lock "$DVC_URL/dvc.lock"
