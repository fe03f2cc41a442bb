"""python one_process.py creditcard.csv FOLDER: the four scripts in one process, which reads the CSV file once."""

import sys
from pathlib import Path

from evaluate import evaluate
from explore import explore
from preprocess import cut_outliers, read, scale, split, undersample
from train import search

if __name__ == "__main__":
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    table = read(source)
    balanced = undersample(scale(table))
    cut = cut_outliers(balanced)
    train, valid, test = split(cut)
    explore(table, balanced, cut, folder)
    evaluate(search(train), valid, test, folder)
