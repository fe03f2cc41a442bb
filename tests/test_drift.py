"""`fraudnb drift`: what a scheduler, another program and a person are told."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from project import command, paragraph


@pytest.fixture(scope="module")
def project(small_run, tmp_path_factory) -> Path:
    """A finished run, its test rows, and the same with one value shifted."""
    folder = tmp_path_factory.mktemp("drift") / "project"
    shutil.copytree(small_run, folder)
    rows = pd.read_parquet(folder / "data/main/transactions.parquet").drop(columns="Class").sample(6000, random_state=0)
    rows.iloc[:3000].to_parquet(folder / "before.parquet")
    rows.iloc[3000:].to_csv(folder / "same.csv", index=False)
    rows.iloc[3000:].assign(V4=rows["V4"] + 1).to_csv(folder / "shifted.csv.gz", index=False)
    return folder


def test_resample_and_shift(project):
    """The same distribution: exit code 0. A shifted value: 3, and it is named, in the JSON and on the page."""
    done = command(project, "drift", "same.csv", "--reference", "before.parquet")
    assert done.returncode == 0 and "Nothing has drifted." in done.stdout, done.stdout + done.stderr
    words = ("drift", "shifted.csv.gz", "--reference", "before.parquet", "--out", "report.html", "--json")
    done = command(project, *words)
    found = json.loads(done.stdout)
    assert done.returncode == 3 and found["drifted"][0] == "V4" and found["rows"] == 3000
    page = (project / "report.html").read_text(encoding="utf-8")
    assert "V4" in page and "<script" not in page and "http" not in page


def test_the_card_is_the_reference(project):
    """Against what the card remembers; whether its rows drifted in the sample is not what is tested here."""
    done = command(project, "drift", "same.csv", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == (3 if found["drifted"] else 0)
    names = {one["name"] for one in found["findings"]}
    assert {"V1", "Amount", "probability", "alerts"} <= names


def test_wrong_input(project, tmp_path):
    old = Path(shutil.copytree(project / "models/main", tmp_path / "old"))
    card = json.loads((old / "card.json").read_text())
    del card["reference"]
    (old / "card.json").write_text(json.dumps(card))
    (project / "empty.csv").write_text((project / "same.csv").read_text().splitlines()[0] + "\n")
    for words, expected in (
        (("no.csv",), "no.csv"),
        (("empty.csv",), "no rows"),
        (("same.csv", "--model", old), "--reference"),
        (("same.csv", "--out", "report.pdf"), "HTML or JSON"),
        (("same.csv", "--alpha", "2"), "between 0 and 1"),
        (("same.csv", "--model", "no/such"), "There is no model"),
    ):
        done = command(project, "drift", *words)
        assert done.returncode in (1, 2) and expected in paragraph(done.stderr), words
