"""`fraudnb score`, `fraudnb metrics` and `fraudnb --help` as commands, on the model of a small run."""

import csv
import gzip
import hashlib
import io
import json
import pickle
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from project import command, environment, paragraph, snapshot

from fraudnb.cli import main

TOLERANCE = 1e-4  # what fraudnb.train.check_export allows between ONNX (float32) and Python
ADDED = ["probability", "decision"]


@pytest.fixture(scope="session")
def rows(small_run) -> pd.DataFrame:
    """200 test rows of the small run, frauds among them."""
    table = pd.read_parquet(small_run / "data/main/test.parquet")
    return pd.concat([table[table["Class"] == 1].head(5), table[table["Class"] == 0].head(195)]).sort_values("Time")


@pytest.fixture
def place(tmp_path, small_run, rows) -> Path:
    """A folder with a copy of the model and `in.csv`."""
    shutil.copytree(small_run / "models", tmp_path / "models")
    rows.to_csv(tmp_path / "in.csv", index=False)
    return tmp_path


def read_csv(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def score(place: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """What `fraudnb score` with `words` does in the folder `place`: the command's own function, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as stop:
            main(["score", *map(str, words)])
    return subprocess.CompletedProcess(words, stop.value.code, out.getvalue(), err.getvalue())


def refused(place: Path, *words: object, by: Callable[..., subprocess.CompletedProcess[str]] = score) -> str:
    """The paragraph with which `fraudnb score` refuses; nothing on standard output, no file written or changed."""
    before = snapshot(place)
    done = by(place, *words)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and snapshot(place) == before
    return paragraph(done.stderr)


def score_process(place: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """The same as a process of its own."""
    return command(place, "score", *words)


# -- good input


def test_csv_keeps_every_field_as_it_is(place, rows):
    """Texts with commas, quotes, blanks and other alphabets; numbers in odd spellings; empty fields; the order."""
    odd = ["a,b", 'say "x"', " blank ", "größe", "", "NA", "007", "1.50", "1e3", "=1+1"] * 20
    table = rows.assign(note=odd, Amount=[f"{value:.3f}0" for value in rows["Amount"]])
    table = table[["note", *(name for name in table if name != "note")]]
    table.to_csv(place / "odd.csv", index=False)
    done = score_process(place, "odd.csv", "--out", "out.csv")
    assert done.returncode == 0, done.stderr
    given = read_csv((place / "odd.csv").read_text(encoding="utf-8"))
    got = read_csv((place / "out.csv").read_text(encoding="utf-8"))
    assert [line[:-2] for line in got] == given
    assert got[0][-2:] == ADDED and {line[-1] for line in got[1:]} == {"alert", "pass"}
    assert done.stdout == "" and "200 transactions scored" in done.stderr and "written to out.csv" in done.stderr
    assert [path.name for path in place.iterdir() if path.name.startswith(".")] == []


def test_probabilities_are_those_of_python_and_of_the_evaluation(place, small_run, rows):
    """ONNX against scikit-learn and LightGBM, row by row, and against 04's scores; decisions by the threshold."""
    from fraudnb.model import read_card
    from fraudnb.train import load_pipeline

    assert score(place, "in.csv", "--out", "out.parquet").returncode == 0
    got, card = pd.read_parquet(place / "out.parquet"), read_card(place / "models/main")
    expected = load_pipeline(place / "models/main").predict_proba(rows[card["inputs"]].astype(np.float32))[:, 1]
    np.testing.assert_allclose(got["probability"], expected, rtol=0, atol=TOLERANCE)
    evaluated = pd.read_parquet(small_run / "runs/main/scores.parquet").set_index("row")["probability"]
    np.testing.assert_allclose(got["probability"], evaluated.loc[rows["row"]], rtol=0, atol=1e-6)
    alerts = got["probability"] >= card["threshold"]
    assert got["decision"].tolist() == np.where(alerts, "alert", "pass").tolist()
    assert alerts[got["Class"].to_numpy().astype(float) == 1].mean() > 0.5


def test_standard_output_is_the_file(place):
    """Without --out the CSV goes to standard output and the count to standard error; gzip, zip, BOM and Parquet too."""
    text = (place / "in.csv").read_text()
    (place / "in.csv.gz").write_bytes(gzip.compress(text.encode()))
    (place / "bom.csv").write_text(text, encoding="utf-8-sig")
    with zipfile.ZipFile(place / "in.zip", "w") as archive:
        archive.writestr("in.csv", text)
    assert score(place, "in.csv", "--out", "out.csv").returncode == 0
    for name in ("in.csv", "in.csv.gz", "bom.csv", "in.zip"):
        done = score(place, name)
        assert done.returncode == 0, done.stderr
        assert done.stdout == (place / "out.csv").read_text(encoding="utf-8"), name
        assert done.stderr.startswith("200 transactions scored, ")
        assert done.stderr.splitlines()[1:] == ["The model: models/main"]


def test_parquet_keeps_every_column_and_type(place, rows):
    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata()
    days = pa.array(pd.to_datetime(rows["Time"].to_numpy(), unit="s"))
    table = table.append_column("when", days).append_column("note", pa.array(["x", None] * 100))
    pq.write_table(table, place / "in.parquet")
    done = score(place, "in.parquet", "--out", "out.parquet")
    assert done.returncode == 0, done.stderr
    got = pq.read_table(place / "out.parquet")
    assert got.column_names == [*table.column_names, *ADDED]
    assert got.select(table.column_names).to_pylist() == table.to_pylist()
    whole = [name for name in table.column_names if name != "note"]  # text may become large_string
    assert got.schema.field("probability").type == pa.float64()
    assert [got.schema.field(name).type for name in whole] == [table.schema.field(name).type for name in whole]


def test_parquet_keeps_whole_numbers_with_a_gap(place, rows):
    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata()
    table = table.append_column("card", pa.array([None, *[2**60 + 1] * 199], pa.int64()))
    pq.write_table(table, place / "in.parquet")
    assert score(place, "in.parquet", "--out", "out.parquet").returncode == 0
    assert pq.read_table(place / "out.parquet")["card"].to_pylist() == table["card"].to_pylist()


def test_packed_output_is_packed_or_refused(place):
    done = score(place, "in.csv", "--out", "out.csv.gz")
    refused_clearly = done.returncode == 2 and not (place / "out.csv.gz").exists()
    assert refused_clearly or len(pd.read_csv(place / "out.csv.gz")) == 200


def test_threshold_given(place):
    """--threshold takes the place of the evaluation's; at 0 everything is an alert."""
    done = score(place, "in.csv", "--threshold", "0")
    assert {line[-1] for line in read_csv(done.stdout)[1:]} == {"alert"}
    assert "between 0 and 1, not 1.5" in refused(place, "in.csv", "--threshold", "1.5")


def test_output_over_the_input(place):
    """Scored in place: the new file is put there only when it is complete."""
    before = read_csv((place / "in.csv").read_text())
    assert score(place, "in.csv", "--out", "in.csv").returncode == 0
    assert [line[:-2] for line in read_csv((place / "in.csv").read_text())] == before


def test_serving_alone_is_imported(place):
    """Scoring loads neither the training libraries nor papermill."""
    code = """
import sys
from fraudnb.cli import main
try:
    main(["score", "in.csv", "--out", "out.csv"])
except SystemExit as stop:
    assert stop.code == 0
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    run = [sys.executable, "-P", "-c", code]
    done = subprocess.run(run, cwd=place, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    unwanted = {"lightgbm", "sklearn", "imblearn", "papermill", "scrapbook", "matplotlib", "boto3", "skl2onnx", "onnx"}
    assert "onnxruntime" in loaded and loaded & (unwanted | {"skops", "torch", "dvc"}) == set()


# -- bad input


def test_text_in_a_number(place, rows):
    """Row, column and value; the earlier output stays."""
    (place / "out.csv").write_text("earlier")
    rows.assign(V4=["x" if number == 6 else 1.0 for number in range(200)]).to_csv(place / "bad.csv", index=False)
    message = refused(place, "bad.csv", "--out", "out.csv", by=score_process)
    assert "column V4, row 7: 'x' is not a number" in message and "Nothing was scored" in message


def test_missing_and_infinite_values(place, rows):
    table = rows.reset_index(drop=True).astype({"V4": object})
    table.loc[0, "V4"], table.loc[1, "V5"], table.loc[2, "Amount"] = None, np.inf, -1
    table.to_csv(place / "bad.csv", index=False)
    message = refused(place, "bad.csv")
    assert "column V4, row 1:" in message and "column V5, row 2: inf is infinite" in message
    assert "column Amount, row 3: -1.0 is negative" in message


def test_missing_value_in_csv_is_called_missing(place, rows):
    rows.assign(V4=[None] + [0.0] * 199).to_csv(place / "bad.csv", index=False)
    assert "column V4, row 1: is missing" in refused(place, "bad.csv")


def test_missing_column(place, rows):
    rows.rename(columns={"Amount": "amount"}).to_csv(place / "bad.csv", index=False)
    message = refused(place, "bad.csv")
    assert "Missing column 'Amount'. Did you mean 'amount'?" in message


def test_column_given_twice(place, rows):
    text = rows.to_csv(index=False).replace("Time", "V1", 1)
    (place / "bad.csv").write_text(text)
    assert "'V1'" in refused(place, "bad.csv")


def test_column_that_would_be_overwritten(place, rows):
    rows.assign(decision="none").to_csv(place / "bad.csv", index=False)
    assert "already has a column 'decision'" in refused(place, "bad.csv")


def test_unreadable_files(place, rows):
    """Missing, empty, header only, semicolons, cut off: each in words of its own."""
    text = rows.to_csv(index=False)
    files = {
        "empty.csv": (b"", "is empty"),
        "header.csv": (text.splitlines(keepends=True)[0].encode(), "no rows"),
        "semicolons.csv": (text.replace(",", ";").encode(), "separated by ';'"),
        "cut.csv.gz": (gzip.compress(text.encode())[:-500], "cut off or damaged"),
        "cut.parquet": (b"PAR1" + text.encode(), "cannot be read"),
    }
    for name, (content, _) in files.items():
        (place / name).write_bytes(content)
    for name, expected in [*((name, words) for name, (_, words) in files.items()), ("none.csv", "no file none.csv")]:
        assert expected in refused(place, name, "--out", "out.csv")


# -- a model that must not be used


def test_missing_model(place):
    missing = "There is no model at models/mian"
    assert missing in refused(place, "in.csv", "--model", "models/mian")
    assert missing in refused(place, "serve", "--model", "models/mian", "--port", 0, by=command)
    (place / "models/main/model.onnx").unlink()
    assert "model.onnx is missing" in refused(place, "in.csv")


def test_port_that_is_taken(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Port {port} of 127.0.0.1 cannot be had" in refused(place, "serve", "--port", port, by=command)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("serve", "--port", 99_999), "less than or equal to 65535. `fraudnb --help`"),
        (("serve", "--modle", "x"), "No such option: --modle (Possible options: --model). `fraudnb --help`"),
        (("srve",), "Did you mean 'serve', 'score', 'source'? `fraudnb --help`"),
    ],
)
def test_wrong_words_are_told_in_whole_sentences(place, words, said):
    assert said in refused(place, *words, by=command)


def test_tampered_model(place):
    """One byte changed, then half the file cut off: the checksum of the card tells."""
    path = place / "models/main/model.onnx"
    content = path.read_bytes()
    for changed in (bytes([content[0] ^ 1]) + content[1:], content[: len(content) // 2]):
        path.write_bytes(changed)
        message = refused(place, "in.csv", "--out", "out.csv")
        assert "SHA-256 differs" in message and "Train again" in message


class Evil:
    """What makes a mark where it is unpickled."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("unpickled"),)


def test_pickle_in_place_of_the_model(place):
    """Even with the checksum put right, a pickle is refused and never loaded."""
    folder = place / "models/main"
    content = pickle.dumps(Evil())
    (folder / "model.onnx").write_bytes(content)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"sha256": hashlib.sha256(content).hexdigest()}))
    assert "model.onnx is not a model that ONNX Runtime can run" in refused(place, "in.csv")
    assert not (place / "unpickled").exists()


def test_broken_card(place):
    (place / "models/main/card.json").write_text('{"inputs": [')
    assert "card.json is not JSON" in refused(place, "in.csv")
    (place / "models/main/card.json").write_text("{}")
    assert "lacks inputs, schema, sha256" in refused(place, "in.csv")


def test_model_without_a_threshold(place):
    """Trained but not evaluated: says so, and --threshold is enough."""
    (place / "models/main/evaluation.json").unlink()
    assert "--threshold" in refused(place, "in.csv")
    assert score(place, "in.csv", "--threshold", "0.5").returncode == 0


# -- metrics, help


def test_metrics_as_json(small_run):
    """One flat object of numbers, equal to the file that DVC reads."""
    done = command(small_run, "metrics", "--json")
    numbers = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == ""
    assert numbers == json.loads((small_run / "runs/main/metrics.json").read_text())
    assert all(type(value) in (int, float) for value in numbers.values()) and list(numbers) == sorted(numbers)


def test_metrics_as_a_table(small_run):
    done = command(small_run, "metrics")
    assert done.returncode == 0 and done.stderr == ""
    assert "average_precision" in done.stdout and "threshold" in done.stdout


def test_metrics_of_an_unknown_run(small_run):
    done = command(small_run, "metrics", "mian")
    assert done.returncode == 2 and done.stdout == ""
    message = paragraph(done.stderr)
    assert "Did you mean 'main'?" in message and "There are: main." in message


def test_help(tmp_path):
    """Everywhere, without a project, and without loading pandas."""
    done = command(tmp_path, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert [name for name in ("run", "metrics", "score") if name not in done.stdout] == []
    code = "import sys\nfrom fraudnb.cli import main\ntry:\n main(['--help'])\nexcept SystemExit:\n pass\n"
    run = [sys.executable, "-P", "-c", code + "sys.exit('pandas' in sys.modules)"]
    assert subprocess.run(run, env=environment(), stdout=subprocess.DEVNULL, timeout=60).returncode == 0
