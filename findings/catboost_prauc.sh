#!/usr/bin/env bash
# CatBoost's PRAUC gives a model that knows nothing .50 where 2 in 1,000 are frauds, and early stopping by it keeps the
# first tree.
#
# Guessed: the area under the precision-recall curve of constant scores is the share of frauds (.002), in CatBoost as in
# scikit-learn, LightGBM and XGBoost; so eval_metric="PRAUC" is the choice for rare classes.
# Seen (catboost 1.2.10, lightgbm 4.7.0, xgboost-cpu 3.2.0, scikit-learn 1.9.1): the curve is drawn by straight lines
# from the point (recall 0, precision 1) to the first score, so rows that share a score are credited with up to half of
# the square. Constant scores get .501; the same scores rounded to two values rise from .130 to .232, while average
# precision falls from .145 to .055 (LightGBM's average_precision is within 1e-4 of scikit-learn's in all three cases; XGBoost's
# aucpr interpolates as Davis and Goadrich do and stays at the share of frauds for constant scores).
# Trained with eval_metric="PRAUC" and an eval_set, CatBoost keeps the best iteration by default. With trees of depth 1
# that is iteration 0 on each of three seeds: reported .42 to .48, average precision .002 on the same rows, where all
# 200 trees reach .16 to .32.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check catboost==1.2.10 lightgbm==4.7.0 xgboost-cpu==3.2.0 \
    scikit-learn==1.9.1 numpy==2.4.6 pandas==3.1.1
env/bin/python - <<'PY'
import lightgbm
import numpy as np
import xgboost
from catboost import CatBoostClassifier
from catboost.utils import eval_metric
from sklearn.metrics import average_precision_score

rows = 20_000
random = np.random.default_rng(0)
fraud = (random.random(rows) < 0.002).astype(int)
score = random.normal(size=rows) + 2.5 * fraud
nothing = np.zeros((rows, 1))  # no column tells anything: the scores are given


def lightgbm_value(scores: np.ndarray) -> float:
    data = lightgbm.Dataset(nothing, fraud, init_score=scores)
    parameters = {"objective": "binary", "metric": "average_precision", "boost_from_average": False, "verbose": -1}
    found: dict = {}
    lightgbm.train(parameters, data, 1, valid_sets=[data], callbacks=[lightgbm.record_evaluation(found)])
    return found["training"]["average_precision"][0]


def xgboost_value(scores: np.ndarray) -> float:
    data = xgboost.DMatrix(nothing, fraud, base_margin=scores)
    parameters = {"objective": "binary:logistic", "eval_metric": "aucpr", "eta": 0}
    found: dict = {}
    xgboost.train(parameters, data, 1, evals=[(data, "rows")], evals_result=found, verbose_eval=False)
    return found["rows"]["aucpr"][0]


seen = {}
print(f"{'scores':<12}{'scikit-learn':>14}{'lightgbm':>10}{'xgboost':>10}{'catboost':>10}   share {fraud.mean():.4f}")
for name, scores in {"continuous": score, "two values": (score > 3) * 1.0, "constant": 0 * score}.items():
    values = (
        average_precision_score(fraud, scores),
        lightgbm_value(scores),
        xgboost_value(scores),
        eval_metric(fraud, scores, "PRAUC")[0],
    )
    seen[name] = values
    print(f"{name:<12}{values[0]:>14.4f}{values[1]:>10.4f}{values[2]:>10.4f}{values[3]:>10.4f}")
share = fraud.mean()
assert abs(seen["constant"][3] - (1 + share) / 2) < 1e-6
assert max(seen["constant"][:3]) < 1.05 * share
assert seen["two values"][3] > 1.5 * seen["continuous"][3] and seen["two values"][0] < 0.5 * seen["continuous"][0]
assert abs(seen["two values"][1] - seen["two values"][0]) < 1e-4

for seed in range(3):
    random = np.random.default_rng(seed)
    label = (random.random(40_000) < 0.002).astype(int)
    columns = random.normal(size=(40_000, 8))
    columns[:, :3] += label[:, None] * [1.6, 1.6, -1.2]
    train, valid = (columns[:20_000], label[:20_000]), (columns[20_000:], label[20_000:])
    common = {"iterations": 200, "depth": 1, "learning_rate": 0.1, "verbose": False, "allow_writing_files": False}
    stopped = CatBoostClassifier(**common, eval_metric="PRAUC", thread_count=1).fit(*train, eval_set=valid)
    whole = CatBoostClassifier(**common, thread_count=1).fit(*train)
    said = stopped.get_best_score()["validation"]["PRAUC"]
    kept, all_trees = (
        average_precision_score(valid[1], model.predict_proba(valid[0])[:, 1]) for model in (stopped, whole)
    )
    best = stopped.get_best_iteration()
    print(f"seed {seed}: best iteration {best}, PRAUC {said:.3f}, average precision {kept:.3f}; 200 trees {all_trees:.3f}")
    assert best == 0 and said > 0.4 and kept < 0.01 and all_trees > 0.15
print("as seen")
PY
