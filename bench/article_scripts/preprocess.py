"""python preprocess.py creditcard.csv FOLDER: scale, undersample 1:1, cut outliers, split 80/10/10; small CSV files."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import RobustScaler


def read(path):
    table = pd.read_csv(path)
    print(table.describe())
    print("missing values:", table.isnull().sum().max())
    print("share of each class:", (table["Class"].value_counts() / len(table)).round(5).to_dict())
    return table


def scale(table):
    scaled = table.drop(columns=["Time", "Amount"])
    scaled.insert(0, "scaled_amount", RobustScaler().fit_transform(table[["Amount"]]).ravel())
    scaled.insert(1, "scaled_time", RobustScaler().fit_transform(table[["Time"]]).ravel())
    return scaled


def undersample(table):
    shuffled = table.sample(frac=1, random_state=42)
    fraud = shuffled[shuffled["Class"] == 1]
    genuine = shuffled[shuffled["Class"] == 0][: len(fraud)]
    return pd.concat([fraud, genuine]).sample(frac=1, random_state=42)


def cut_outliers(table, columns=("V14", "V12", "V10")):
    for column in columns:
        low, high = np.percentile(table.loc[table["Class"] == 1, column], [25, 75])
        reach = 1.5 * (high - low)
        table = table[table[column].between(low - reach, high + reach)]
        print(f"{column}: {len(table)} rows left between {low - reach:.3f} and {high + reach:.3f}")
    return table


def split(table):
    train, rest = train_test_split(table, test_size=0.2, stratify=table["Class"], random_state=42)
    valid, test = train_test_split(rest, test_size=0.5, stratify=rest["Class"], random_state=42)
    return train, valid, test


if __name__ == "__main__":
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    balanced = undersample(scale(read(source)))
    cut = cut_outliers(balanced)
    balanced.to_csv(folder / "balanced.csv", index=False)
    cut.to_csv(folder / "cut.csv", index=False)
    for name, part in zip(("train", "valid", "test"), split(cut), strict=True):
        part.to_csv(folder / f"{name}.csv", index=False)
