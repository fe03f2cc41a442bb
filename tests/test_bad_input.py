"""Bad input of every kind, through the real command or the notebook's own cells: one paragraph, the right exit code,
no half-written file, and what was there before is as it was."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from project import (
    BIN,
    command,
    environment,
    kernels,
    make_project,
    one_line,
    paragraph,
    printed,
    snapshot,
    transactions,
    write_notebook,
)
from test_fetch import Wire

from fraudnb.cli import exit_code, main

FAILED = "runs/main/00_download.failed.ipynb"


def csv_text(table: pd.DataFrame) -> str:
    return table.to_csv(index=False)


# -- a good run makes what a bad one must not touch


@pytest.fixture
def project(small_run, tmp_path) -> Path:
    """A copy of the small run of this test's own, without its params.yaml."""
    folder = shutil.copytree(small_run, tmp_path / "project")
    (folder / "params.yaml").unlink()
    return folder


def test_byte_order_mark_and_duplicates_are_good_input(project):
    """00 takes them as they are; 02, as a command, drops the three repeated rows and says so."""
    table = transactions()
    text = csv_text(pd.concat([table, *[table.tail(1)] * 3]))
    (project / "good.csv").write_text(text, encoding="utf-8-sig")
    assert download(project, "good.csv") == (0, "")
    whole = pd.read_parquet(project / "data/main/transactions.parquet")
    pd.testing.assert_frame_equal(whole.head(300), table.astype({"Class": "int8"}))
    assert len(whole) == 303
    done = command(project, "run", "02_preprocess")
    assert done.returncode == 0, done.stderr
    parts = [pd.read_parquet(project / f"data/main/{name}.parquet") for name in ("train", "valid", "test")]
    assert sorted(row for part in parts for row in part["row"]) == list(range(300))
    assert "303 rows, of them 3 exact duplicates" in printed(project / "runs/main/02_preprocess.ipynb")


def refused_run(project: Path, *words: object, code: int = 2, new: tuple[str, ...] = (FAILED,), **settings: str) -> str:
    """The paragraph of a run that must fail with `code`, leave the files `new` and change no other."""
    before = snapshot(project)
    done = command(project, "run", *words, "--name", "main", env=environment(**settings))
    assert done.returncode == code, done.stderr
    after = snapshot(project)
    assert set(after) - set(before) == set(new)
    assert {name: after.get(name) for name in before} == before
    for name in new:
        assert json.loads((project / name).read_text(encoding="utf-8"))["cells"]
    assert not kernels(project)
    return paragraph(done.stderr)


# -- through the command


def test_missing_file(project):
    (project / "table.csv").write_text("")
    message = refused_run(project, "00_download", "-p", "source", "tabel.csv")
    assert "tabel.csv does not exist" in message and "Did you mean 'table.csv'?" in message
    assert str(project / FAILED) in message


def test_text_not_a_number_and_infinite(project):
    """All kinds of problem in one message, each with its row, column and value."""
    table = transactions().astype({"V3": object})
    table.loc[4, "V3"], table.loc[6, "Amount"], table.loc[[9, 11], "V5"] = "two", float("inf"), float("nan")
    (project / "bad.csv").write_text(csv_text(table))
    message = refused_run(project, "00_download", "-p", "source", "bad.csv")
    assert "column V3, row 5: 'two' is not a number" in message
    assert "column Amount, row 7: inf is infinite" in message
    assert "column V5, rows 10, 12: is missing" in message
    assert "Mend these rows and run again" in message


def test_one_fraud(project):
    """00 takes a table with one fraud; 02 cannot split it, says what would help, and leaves the earlier parts."""
    (project / "one.csv").write_text(csv_text(transactions(frauds=1)))
    assert download(project, "one.csv") == (0, "")
    message = refused_run(project, "02_preprocess", new=("runs/main/02_preprocess.failed.ipynb",))
    assert "needs both kinds" in message and "split = stratified" in message


def s3_settings(s3, endpoint: str = "") -> dict[str, str]:
    settings = {name: value for name, value in s3.env.items() if name.startswith("AWS_")}
    return settings | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})


def test_s3_object_that_is_not_there(project, s3, bucket):
    message = refused_run(project, "00_download", "-p", "source", f"s3://{bucket}/none.csv", **s3_settings(s3))
    assert "does not exist in the bucket" in message and f"s3://{bucket}/none.csv" in message


def test_s3_access_denied(project, s3, bucket):
    s3.put(bucket, "a.csv", csv_text(transactions()).encode())
    settings = s3_settings(s3) | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    message = refused_run(project, "00_download", "-p", "source", f"s3://{bucket}/a.csv", **settings)
    assert "403" in message and "wrong" not in message.replace("wrong or", "")


@pytest.mark.thorough
def test_s3_connection_cut_for_good(project, s3, bucket):
    s3.put(bucket, "a.csv", csv_text(transactions(3000)).encode())
    with Wire(s3.endpoint, cut_after=100_000) as wire:
        source = f"s3://{bucket}/a.csv"
        message = refused_run(project, "00_download", "-p", "source", source, **s3_settings(s3, wire.endpoint))
        assert wire.count("GET") > 1  # it was tried again
    assert "did not arrive whole" in message


# -- no room on the disk

private = ["unshare", "-m" if os.geteuid() == 0 else "-rm", "sh", "-c"]


def run_on_small_disk(project: Path, folder: str, *words: str) -> tuple[subprocess.CompletedProcess, Path]:
    """`fraudnb run` with `folder` of the project on a file system of its own, with the folder's files and 8 kB.

    Returns also a copy of what is there in the end: the file system goes with the process.
    """
    may = subprocess.run([*private, 'mount -t tmpfs none "$1"', "sh", str(project)], capture_output=True, text=True)
    assert may.returncode == 0, f"needs unshare (util-linux) and the right to mount a small disk: {may.stderr}"
    left = project.parent / "left"
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in (project / folder).iterdir()) + 8192
    script = 'cp -r "$1" "$2" && mount -t tmpfs -o "size=$3" none "$1" && cp -r "$2/." "$1" && rm -r "$2"'
    script += ' && folder="$1" left="$2" && shift 3 && { "$@"; code=$?; cp -r "$folder" "$left"; exit $code; }'
    # no kernels to fork are there in a world of its own, and to make that process for one takes longer
    run = [str(BIN / "fraudnb"), "run", *words, "--name", "main", "--engine", "fresh"]
    done = subprocess.run(
        [*private, script, "sh", str(project / folder), str(left), str(size), *run],
        cwd=project, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done, left


def test_disk_full_while_the_table_is_written(project):
    before = snapshot(project / "data/main")
    done, left = run_on_small_disk(project, "data/main", "00_download", "-p", "source", "sample:1000")
    assert done.returncode == 1, done.stderr
    message = paragraph(done.stderr)
    assert "No space left on device" in message and "write_transactions" in message
    assert str(project / FAILED) in message
    assert snapshot(left) == before


@pytest.mark.thorough
def test_disk_full_while_the_notebook_is_written(project):
    shutil.rmtree(project / "runs/main")
    (project / "runs/main").mkdir()
    done, left = run_on_small_disk(project, "runs/main", "00_download", "-p", "source", "sample:1000")
    assert done.returncode == 1, done.stderr
    message = paragraph(done.stderr)
    assert "No space left on device" in message and "runs/main" in message
    assert snapshot(left) == {}


# -- the same cells without a kernel: all other cases


WORK = ("check_running(", "counts = write_transactions(tables")  # in the first of these cells, and in the last


def download_code(notebook: Path, **parameters: object) -> str:
    """What `notebook` (00) executes: exported cells, parameters, those given here, the cells that do the work."""
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    exported = [source for source in sources if source.startswith("#| export")]
    (declared,) = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    first, last = (next(at for at, one in enumerate(sources) if text in one) for text in WORK)
    given = [f"{name} = {value!r}" for name, value in parameters.items()]
    return "\n".join([*exported, declared, *given, *sources[first : last + 1]])


def download(project: Path, source: str, **parameters: object) -> tuple[int, str]:
    """Exit code and standard error of what 00_download does in `project`: its own cells, in this process."""
    code = compile(download_code(project / "nbs/00_download.ipynb", source=source, **parameters), "00_download", "exec")
    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr(sys, "stderr", errors)
        status = exit_code(lambda: exec(code, {"__name__": "__main__"}))
    return status, errors.getvalue()


@pytest.fixture
def empty(tmp_path) -> Path:
    """A project with an earlier table and nothing else."""
    folder = make_project(tmp_path / "project", parameters="")
    (folder / "earlier.csv").write_text(csv_text(transactions(seed=1)))
    assert download(folder, "earlier.csv") == (0, "")
    return folder


def refused_download(project: Path, source: str, **parameters: object) -> str:
    """The paragraph with which 00's cells refuse `source`; all files stay as they are."""
    before = snapshot(project)
    code, stderr = download(project, source, **parameters)
    assert code == 2, stderr
    assert snapshot(project) == before
    return paragraph(stderr)


def changed(change: Callable[[pd.DataFrame], object]) -> str:
    """The text of a good CSV after `change`, which changes a table in place or returns another."""
    table = transactions().astype({"V2": object})
    other = change(table)
    return csv_text(table if other is None else other)


def set_cell(column: str, row: int, value: object) -> Callable[[pd.DataFrame], None]:
    return lambda table: table.__setitem__(column, table[column].astype(object).where(table.index != row - 1, value))


BAD_TABLES = {
    "empty": ("", ["is empty"]),
    "blank line": ("\n", ["is empty"]),
    "header only": (changed(lambda table: table.head(0)), ["no rows", "Class"]),
    "semicolons": (changed(lambda table: table).replace(",", ";"), ["separated by ';'", "delimiter = ';'"]),
    "missing column": (changed(lambda table: table.drop(columns="V7")), ["Missing column 'V7'", "Add what is missing"]),
    "misspelt": (changed(lambda t: t.rename(columns={"Amount": "Amuont"})), ["'Amount'", "Did you mean 'Amuont'?"]),
    "extra column": (changed(lambda table: table.assign(note=1)), ["'note' has no role", "extra = drop"]),
    "column twice": (changed(lambda t: t.assign(x=t["V1"])).replace("Class,x", "Class,V1"), ["'V1' more than once"]),
    "text": (changed(set_cell("V2", 7, "n/k")), ["column V2, row 7", "'n/k' is not a number"]),
    "comma decimals": (changed(set_cell("V2", 7, "1,5")), ["column V2, row 7", "'1,5' is not a number"]),
    "NaN": (changed(set_cell("V2", 300, "NaN")), ["column V2, row 300: is missing", "missing = keep"]),
    "empty field": (changed(set_cell("V2", 1, None)), ["column V2, row 1: is missing"]),
    "inf": (changed(set_cell("V2", 8, "inf")), ["column V2, row 8: inf is infinite"]),
    "minus inf": (changed(set_cell("V2", 8, "-inf")), ["column V2, row 8: -inf is infinite"]),
    "overflow": (changed(set_cell("V2", 8, "1e999")), ["column V2, row 8: inf is infinite"]),
    "negative amount": (changed(set_cell("Amount", 2, -1)), ["column Amount, row 2", "is negative"]),
    "label 2": (changed(set_cell("Class", 5, 2)), ["column Class, row 5", "2", "is neither 0 nor 1"]),
    "label 0.5": (changed(set_cell("Class", 5, 0.5)), ["column Class, row 5: 0.5 is neither 0 nor 1"]),
    "label text": (changed(set_cell("Class", 5, "yes")), ["column Class, row 5", "'yes' is not a number"]),
    "label missing": (changed(set_cell("Class", 5, None)), ["column Class, row 5: is missing"]),
    "no fraud": (changed(lambda table: table.assign(Class=0)), ["no fraud among 300 rows", "Class 1"]),
    "frauds only": (changed(lambda table: table.assign(Class=1)), ["300 frauds and nothing else"]),
    "unsorted": (changed(set_cell("Time", 50, 0)), ["row 50 is earlier than the row before it", "unsorted = sort"]),
    "short row": (changed(lambda table: table) + "1,2,3\n", ["Expected 31 columns, got 3"]),
    "binary": ("\0\1\2\3", ["Missing column"]),
    "html": ("<!DOCTYPE html>\n<html><body>Log in</body></html>\n", ["Missing column", "has '<!DOCTYPE html>'"]),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_csv(empty, name):
    text, words = BAD_TABLES[name]
    (empty / "bad.csv").write_text(text)
    message = one_line(refused_download(empty, "bad.csv"))
    assert [word for word in words if word not in message] == [], message


def test_csv_cut_inside_a_row(empty):
    """A truncated plain CSV shows in its last row; the row is not taken as one with missing values."""
    text = changed(lambda table: table)
    (empty / "bad.csv").write_text(text[: text.rindex(",") - 60])
    assert "Is it complete" in refused_download(empty, "bad.csv")


def test_latin1_header(empty):
    (empty / "bad.csv").write_bytes(changed(lambda table: table.assign(größe=1)).encode("latin-1"))
    assert "not text in UTF-8" in refused_download(empty, "bad.csv")


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.csv", content)
    return stream.getvalue()


GOOD_CSV = csv_text(transactions()).encode()
BAD_PACKS = {
    "cut.csv.gz": (gzip.compress(GOOD_CSV)[:-2000], "cut off or damaged"),
    "tail.csv.gz": (gzip.compress(GOOD_CSV)[:-4], "cut off or damaged"),
    "flipped.csv.gz": (gzip.compress(GOOD_CSV)[:-8] + b"\0" * 8, "cut off or damaged"),
    "plain.csv.gz": (GOOD_CSV, "cut off or damaged"),
    "cut.zip": (zipped(a=GOOD_CSV)[:-2000], "cut off or damaged"),
    "flipped.zip": (zipped(a=GOOD_CSV).replace(b"PK\x01\x02", b"PK\x01\x03"), "cut off or damaged"),
    "two.zip": (zipped(a=GOOD_CSV, b=GOOD_CSV), "must hold one CSV file"),
    "none.zip": (zipped(), "must hold one CSV file"),
    "cut.parquet": (b"PAR1" + b"\0" * 500, "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_PACKS)
def test_damaged_file(empty, name):
    content, words = BAD_PACKS[name]
    (empty / name).write_bytes(content)
    assert words in refused_download(empty, name)


def test_parquet_cut_off(empty):
    content = (empty / "data/main/transactions.parquet").read_bytes()
    (empty / "cut.parquet").write_bytes(content[: len(content) // 2])
    assert "cannot be read" in refused_download(empty, "cut.parquet")


@pytest.mark.parametrize("name, content", [("a.csv.gz", gzip.compress(GOOD_CSV)), ("a.zip", zipped(a=GOOD_CSV))])
def test_packed_csv_gives_the_same_table(empty, name, content):
    (empty / "a.csv").write_bytes(GOOD_CSV)
    (empty / name).write_bytes(content)
    tables = []
    for source in ("a.csv", name):
        assert download(empty, source) == (0, "")
        tables.append(pd.read_parquet(empty / "data/main/transactions.parquet"))
    pd.testing.assert_frame_equal(*tables)


def test_checksum_mismatch(empty):
    (empty / "a.csv").write_bytes(GOOD_CSV)
    assert "a.csv" in refused_download(empty, "a.csv", sha256="0" * 64)


def test_allowed_when_asked_for(empty):
    """What a refusal offers works: extra columns dropped, missing features kept, rows sorted."""
    table = transactions().assign(note="x").iloc[::-1]
    table.loc[3, "V2"] = None
    (empty / "a.csv").write_text(csv_text(table))
    assert download(empty, "a.csv", extra="drop", missing="keep", unsorted="sort") == (0, "")
    got = pd.read_parquet(empty / "data/main/transactions.parquet")
    assert list(got) == list(transactions()) and got["Time"].is_monotonic_increasing and got["V2"].isna().sum() == 1


# -- wrong usage: nothing is executed


@pytest.fixture
def plain(tmp_path, monkeypatch) -> Path:
    """A project without outputs, in which no notebook may be executed."""
    folder = make_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("fraudnb.runs.execute", lambda *args, **named: pytest.fail("a notebook was executed"))
    return folder


def refused_usage(project: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The paragraph with which `fraudnb` refuses `words` by exit code 2; no file is written."""
    before = snapshot(project)
    with pytest.raises(SystemExit) as stop:
        main(words)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert snapshot(project) == before
    return paragraph(err)


WRONG_USAGE = {
    "misspelt parameter": (["run", "00_download", "-p", "sourc", "a.csv"], ["'sourc'", "Did you mean 'source'?"]),
    "misspelt, whole pipeline": (["run", "-p", "test_sise", "0.1"], ["'test_sise'", "Did you mean 'test_size'?"]),
    "wrong choice": (["run", "02", "-p", "split", "tempral"], ["temporal, stratified", "Did you mean 'temporal'?"]),
    "text for float": (["run", "02", "-p", "valid_size", "much"], ["valid_size expects float, not 'much'"]),
    "float for int": (["run", "02", "-p", "seed", "1.5"], ["seed of 02_preprocess expects int, not 1.5 (float)"]),
    "bool for int": (["run", "02", "-p", "seed", "true"], ["expects int, not True (bool)"]),
    "text for list": (["run", "02", "-p", "outlier_columns", "V1"], ["expects list[str], not 'V1' (str)"]),
    "broken value": (["run", "02", "-p", "outlier_columns", "[V1"], ["outlier_columns expects list[str]"]),
    "parameter without value": (["run", "02", "-p", "split"], ["-p split has no value", "-p NAME VALUE"]),
    "unknown notebook": (["run", "02_preproces"], ["no notebook '02_preproces'", "Did you mean '02_preprocess'?"]),
    "second unknown": (["run", "00_download", "03_trian"], ["Did you mean '03_train'?"]),
    "missing recipe": (["run", "-f", "none.yaml"], ["no file none.yaml"]),
    "name with a slash": (["run", "00_download", "--name", "a/b"], ["'a/b' cannot be a run's name"]),
    "name of the parent": (["run", "00_download", "--name", ".."], ["'..' cannot be a run's name"]),
    "empty name": (["run", "00_download", "--name", ""], ["cannot be a run's name"]),
}


@pytest.mark.parametrize("name", WRONG_USAGE)
def test_wrong_usage(plain, capsys, name):
    words, expected = WRONG_USAGE[name]
    message = refused_usage(plain, capsys, *words)
    assert [text for text in expected if text not in message] == [], message


BAD_RECIPES = {
    "unknown section": ("02_preproces: {seed: 1}\n", "Did you mean '02_preprocess'?"),
    "unknown parameter": ("02_preprocess: {sed: 1}\n", "Did you mean 'seed'?"),
    "wrong type": ("02_preprocess: {seed: one}\n", "expects int, not 'one' (str)"),
    "wrong choice": ("02_preprocess: {split: tempral}\n", "Did you mean 'temporal'?"),
    "bad YAML": ("02_preprocess: {seed: 1\n", "cannot be read as YAML"),
    "tab in YAML": ("02_preprocess:\n\tseed: 1\n", "cannot be read as YAML"),
    "not sections": ("seed: 1\n", "one section per notebook"),
    "a list": ("- 02_preprocess\n", "one section per notebook"),
    "no number": ("preprocess: {sed: 1}\n", "02_preprocess has no parameter 'sed'. Did you mean 'seed'?"),
    "two names of one": ("preprocess: {seed: 1}\n02_preprocess: {}\n", "for 02_preprocess: 'preprocess' and '02_pre"),
    "not UTF-8": (b"02_preprocess: {split: \xff}\n", "cannot be read as YAML"),
}


@pytest.mark.parametrize("name", BAD_RECIPES)
@pytest.mark.parametrize("file", ["params.yaml", "recipe.yaml"])
def test_bad_recipe(plain, capsys, name, file):
    """Both as params.yaml and as a recipe, and each names the file where that helps."""
    content, expected = BAD_RECIPES[name]
    (plain / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ["run", "02_preprocess", *(["-f", file] if file == "recipe.yaml" else [])]
    message = refused_usage(plain, capsys, *words)
    assert expected in message, message


def untag(path: Path) -> None:
    """Take all tags from the cells of the notebook at `path`, as nbdev-clean does unless told otherwise."""
    book = json.loads(path.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        cell["metadata"].pop("tags", None)
    path.write_text(json.dumps(book), encoding="utf-8")


def test_untagged_notebook(plain, capsys):
    untag(plain / "nbs/02_preprocess.ipynb")
    message = refused_usage(plain, capsys, "run", "02_preprocess")
    assert "02_preprocess.ipynb has no cell tagged 'parameters'" in message and "Tag the cell" in message


def test_untagged_notebook_and_a_parameter(plain, capsys):
    untag(plain / "nbs/02_preprocess.ipynb")
    (plain / "params.yaml").unlink()
    assert "no cell tagged 'parameters'" in refused_usage(plain, capsys, "run", "02_preprocess", "-p", "seed", "1")


@pytest.mark.thorough
def test_untagged_notebook_and_another_name(plain, capsys):
    untag(plain / "nbs/02_preprocess.ipynb")
    (plain / "params.yaml").unlink()
    assert "no cell tagged 'parameters'" in refused_usage(plain, capsys, "run", "02_preprocess", "--name", "other")


def test_usage_is_refused_by_the_process_too(tmp_path):
    """One of the above as a real command: no kernel is started, nothing is written."""
    project = make_project(tmp_path / "project")
    before = snapshot(project)
    done = command(project, "run", "00_download", "-p", "sourc", "a.csv")
    assert done.returncode == 2 and done.stdout == ""
    assert "Did you mean 'source'?" in paragraph(done.stderr)
    assert snapshot(project) == before and not kernels(project)


def test_papermill_alone_refuses_a_wrong_choice(tmp_path):
    """The notebook checks its parameters itself, whoever runs it."""
    project = make_project(tmp_path / "project")
    program = [str(BIN / "papermill"), "nbs/02_preprocess.ipynb", "out.ipynb", "-p", "split", "tempral"]
    run = [*program, "--no-progress-bar"]
    done = subprocess.run(run, cwd=project, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "one of temporal, stratified, article, periods, not 'tempral'. Did you mean 'temporal'?" in done.stderr
    assert not (project / "data").exists()


def test_notebook_that_is_none(plain, capsys):
    (plain / "nbs/02_preprocess.ipynb").write_text('{"cells": [')
    assert "is not a notebook" in refused_usage(plain, capsys, "run", "02_preprocess")


def test_parameter_of_a_notebook_elsewhere(plain, capsys, tmp_path):
    """A notebook given by its path is checked the same way."""
    path = write_notebook(tmp_path / "mine.ipynb", "print(rows)", parameters="rows: int = 1")
    assert "Did you mean 'rows'?" in refused_usage(plain, capsys, "run", str(path), "-p", "row", "2")
