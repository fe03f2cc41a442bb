#!/usr/bin/env bash
# The bundle in models/main to $MODEL_URL, HEAD to $HEROKU_GIT_URL; then $HEALTH_URL must answer with 200 three times in
# a row within $HEALTH_SECONDS (180). If not, the commit and the model that were there before come back; exit code 1.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
: "${MODEL_URL:?}" "${HEROKU_GIT_URL:?}" "${HEALTH_URL:?}"

# git asks this for the password, which then stands in no file and on no command line
credentials='!f() { echo username=heroku; echo "password=$HEROKU_API_KEY"; }; f'
heroku() { git -c credential.helper= -c "credential.helper=$credentials" "$@"; }
bundle() { python .github/scripts/bundle.py "$@"; }
say() { echo "$*" | tee -a "${GITHUB_STEP_SUMMARY:-/dev/null}"; }

healthy() {
    local good=0 until=$((SECONDS + ${HEALTH_SECONDS:-180}))
    while [ "$SECONDS" -lt "$until" ]; do
        if curl --silent --fail --output /dev/null --max-time 30 "$HEALTH_URL"; then good=$((good + 1)); else good=0; fi
        [ "$good" -lt 3 ] || return 0
        sleep "${HEALTH_PAUSE:-5}"
    done
    return 1
}

commit=$(git rev-parse HEAD)
before=$(heroku ls-remote "$HEROKU_GIT_URL" refs/heads/main | cut -f1)
model_before=$(bundle current "$MODEL_URL")
[ -z "$before" ] || heroku fetch --quiet "$HEROKU_GIT_URL" "$before"

bundle store "$MODEL_URL" "$commit"
bundle point "$MODEL_URL" "$commit"
if ! heroku push "$HEROKU_GIT_URL" "$commit:refs/heads/main"; then
    [ -z "$model_before" ] || bundle point "$MODEL_URL" "$model_before"
    say "Heroku has refused $commit; what was released before goes on."
    exit 1
fi
if healthy; then
    say "Released $commit."
    exit 0
fi
if [ -z "$before" ] || [ -z "$model_before" ]; then
    say "$commit does not answer, and there is no release before it to go back to."
    exit 1
fi
bundle point "$MODEL_URL" "$model_before"
heroku push --force "$HEROKU_GIT_URL" "$before:refs/heads/main"
if healthy; then now="which answers"; else now="which does not answer either"; fi
say "$commit did not answer and was taken back; released is $before again, $now."
exit 1
