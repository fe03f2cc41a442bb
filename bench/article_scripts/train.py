"""python train.py FOLDER: a grid of 14 logistic regressions in 5 folds on train.csv; the best one to model.pickle."""

import pickle
import sys
from pathlib import Path

import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV


def search(train):
    # the article's penalty = l1, l2 as scikit-learn spells it since 1.8; liblinear can do both
    grid = {"l1_ratio": [1.0, 0.0], "C": [0.001, 0.01, 0.1, 1, 10, 100, 1000]}
    model = LogisticRegression(solver="liblinear", max_iter=200)
    found = GridSearchCV(model, grid, cv=5, scoring="neg_mean_squared_error", error_score="raise")
    found.fit(train.drop(columns="Class"), train["Class"])
    print("best:", found.best_params_, "mean squared error:", -found.best_score_)
    return found.best_estimator_


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    best = search(pd.read_csv(folder / "train.csv"))
    (folder / "model.pickle").write_bytes(pickle.dumps(best))
