"""python evaluate.py FOLDER: metrics of model.pickle on valid.csv and test.csv; confusion matrix as a heatmap."""

import json
import pickle
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from sklearn import metrics


def measure(model, part):
    label, matrix = part["Class"], part.drop(columns="Class")
    decision, probability = model.predict(matrix), model.predict_proba(matrix)[:, 1]
    print(metrics.classification_report(label, decision))
    return {
        "accuracy": metrics.accuracy_score(label, decision),
        "precision": metrics.precision_score(label, decision, average="weighted"),
        "recall": metrics.recall_score(label, decision, average="weighted"),
        "f1": metrics.f1_score(label, decision, average="weighted"),
        "roc_auc": metrics.roc_auc_score(label, probability),
        "mean_squared_error": metrics.mean_squared_error(label, decision),
    }


def draw_confusion(model, part, folder):
    plt.figure()
    matrix = metrics.confusion_matrix(part["Class"], model.predict(part.drop(columns="Class")))
    sns.heatmap(matrix, annot=True, fmt="d", cmap="Blues")
    plt.savefig(folder / "confusion.png")


def evaluate(model, valid, test, folder):
    numbers = {"valid": measure(model, valid), "test": measure(model, test)}
    print(json.dumps(numbers, indent=1))
    (folder / "metrics.json").write_text(json.dumps(numbers))
    draw_confusion(model, test, folder)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    model = pickle.loads((folder / "model.pickle").read_bytes())
    evaluate(model, pd.read_csv(folder / "valid.csv"), pd.read_csv(folder / "test.csv"), folder)
