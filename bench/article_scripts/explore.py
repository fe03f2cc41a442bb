"""python explore.py creditcard.csv FOLDER: class counts, distributions, correlations, boxes and planes as PNG files."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.manifold import TSNE


def draw_classes(table, folder):
    plt.figure()
    sns.countplot(x="Class", data=table)
    plt.savefig(folder / "classes.png")


def draw_distributions(table, folder):
    figure, axes = plt.subplots(1, 2, figsize=(18, 4))
    for axis, name, color in zip(axes, ("Amount", "Time"), ("r", "b"), strict=True):
        sns.histplot(table[name], bins=50, kde=True, stat="density", ax=axis, color=color)
        axis.set_xlim(table[name].min(), table[name].max())
    figure.savefig(folder / "distributions.png")


def draw_correlations(table, balanced, folder):
    figure, axes = plt.subplots(2, 1, figsize=(24, 20))
    sns.heatmap(table.corr(), cmap="coolwarm_r", ax=axes[0])
    sns.heatmap(balanced.corr(), cmap="coolwarm_r", ax=axes[1])
    figure.savefig(folder / "correlations.png")


def draw_boxes(balanced, folder):
    for sign, names in (("negative", ("V17", "V14", "V12", "V10")), ("positive", ("V11", "V4", "V2", "V19"))):
        figure, axes = plt.subplots(1, 4, figsize=(20, 4))
        for axis, name in zip(axes, names, strict=True):
            sns.boxplot(x="Class", y=name, data=balanced, ax=axis)
        figure.savefig(folder / f"boxes_{sign}.png")


def draw_planes(cut, folder):
    matrix, label = cut.drop(columns="Class").to_numpy(), cut["Class"]
    figure, axes = plt.subplots(1, 3, figsize=(24, 6))
    methods = (TSNE(2, random_state=42), PCA(2, random_state=42), TruncatedSVD(2, random_state=42))
    for axis, method in zip(axes, methods, strict=True):
        x, y = method.fit_transform(matrix).T
        axis.scatter(x, y, c=(label == 0), cmap="coolwarm", label="No Fraud", linewidths=2)
        axis.scatter(x, y, c=(label == 1), cmap="coolwarm", label="Fraud", linewidths=2)
        axis.set_title(type(method).__name__)
        axis.legend()
    figure.savefig(folder / "planes.png")


def explore(table, balanced, cut, folder):
    draw_classes(table, folder)
    draw_distributions(table, folder)
    draw_correlations(table, balanced, folder)
    draw_boxes(balanced, folder)
    draw_planes(cut, folder)


if __name__ == "__main__":
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    explore(pd.read_csv(source), pd.read_csv(folder / "balanced.csv"), pd.read_csv(folder / "cut.csv"), folder)
