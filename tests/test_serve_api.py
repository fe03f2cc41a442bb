"""The API of `fraudnb serve`: what it takes and gives, and that a page, the command and Python agree with it."""

import contextlib
import csv
import gzip
import io
import json
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import clean_environment
from serving import ROW, Server, serving, toy_bundle

from fraudnb.model import load_model, predict_probability

PARQUET = "application/vnd.apache.parquet"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    limits = {"FRAUDNB_MAX_BYTES": "3000000", "FRAUDNB_MAX_ROWS": "5000", "FRAUDNB_READY_PAGES": "1"}
    with serving(folder / "log", toy_bundle(folder / "model"), **limits) as running:
        yield running


def sigmoid(value: float) -> float:
    return 1 / (1 + np.exp(-value))


def test_rows_and_columns(server):
    rows = [ROW | {"id": "007", "Time": 3, "Class": 0}, ROW | {"V1": -1}]
    for body in (rows, {"rows": rows}):
        answer = server.score(body).json()
        assert [row["id"] for row in answer["rows"]] == ["007", 2]
        assert [row["decision"] for row in answer["rows"]] == ["alert", "pass"]
        assert [row["probability"] for row in answer["rows"]] == pytest.approx([sigmoid(0.5), sigmoid(-1)], abs=1e-6)
    assert (answer["model"], answer["threshold"], len(answer["sha256"])) == ("toy", 0.6, 64)
    columns = {"columns": {"V1": [0.5, -1], "V2": [0, 0], "Amount": [1, 1]}}
    assert [row["probability"] for row in server.score(columns).json()["rows"]] == [
        row["probability"] for row in answer["rows"]
    ]


def test_threshold_and_kinds_of_answers(server):
    assert server.score([ROW], "?threshold=0.7").json()["rows"][0]["decision"] == "pass"
    lines = server.score([ROW, ROW], Accept="application/x-ndjson").body.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 2]
    table = list(csv.DictReader(io.StringIO(server.score([ROW], Accept="text/csv").body.decode())))
    assert table == [{"id": "1", "probability": str(table[0]["probability"]), "decision": "alert"}]
    assert server.score([ROW], Accept="image/png").status == 406


@pytest.mark.parametrize("packed", [False, True])
def test_csv_comes_back_whole(server, packed):
    text = b'note,V1,id,V2,Amount\n"a, ""b""\n<b>",0.5,007,0,1\r\n\n=1+1,-1,8,0,2.50\n'
    headers = {"Content_Type": "text/csv"} | ({"Content_Encoding": "gzip"} if packed else {})
    answer = server.score(gzip.compress(text) if packed else text, **headers)
    table = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert [row["note"] for row in table] == ['a, "b"\n<b>', "=1+1"]
    assert [(row["id"], row["Amount"], row["decision"]) for row in table] == [
        ("007", "1", "alert"),
        ("8", "2.50", "pass"),
    ]
    assert list(table[0])[-2:] == ["probability", "decision"]
    answer = server.score(gzip.compress(text) if packed else text, Accept="application/json", **headers).json()
    assert [row["id"] for row in answer["rows"]] == ["007", "8"]


def test_parquet(server, tmp_path):
    table = pd.DataFrame({"id": [7, 8], "V1": [0.5, -1.0], "V2": 0.0, "Amount": [1.0, 2.5], "note": ["x", None]})
    table.to_parquet(tmp_path / "rows.parquet")
    body = (tmp_path / "rows.parquet").read_bytes()
    scored = pd.read_csv(io.BytesIO(server.score(body, Content_Type=PARQUET).body))
    pd.testing.assert_frame_equal(scored[list(table)], table, check_dtype=False)
    assert scored["probability"].tolist() == pytest.approx([sigmoid(0.5), sigmoid(-1)], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "column", "reason"),
    [
        ({"V1": "0.5"}, "V1", "is not a number"),
        ({"V1": True}, "V1", "is not a number"),
        ({"V1": None}, "V1", "is missing"),
        ({"V1": [[1]]}, "V1", "is not a number"),
        ({"V1": 1e60}, "V1", "is not a finite number, or too large"),
        ({"Amount": -1}, "Amount", "is negative"),
        ({"v2": 1}, "v2", "is no column of this model"),
    ],
)
def test_what_does_not_fit_is_named(server, change, column, reason):
    answer = server.score([ROW, ROW | change])
    assert (answer.status, answer.headers["content-type"]) == (422, "application/problem+json")
    (error,) = answer.json()["errors"]
    assert (error["row"], error["column"], error["reason"]) == (2, column, reason)


@pytest.mark.parametrize("value", ["high", "inf", "", "1e60", "0x1", "1_0"])
def test_csv_that_does_not_fit_is_named(server, value):
    answer = server.score(f"V1,V2,Amount\n0,0,1\n0,{value},1\n".encode(), Content_Type="text/csv")
    (error,) = answer.json()["errors"]
    assert (answer.status, error["row"], error["column"]) == (422, 2, "V2")


def test_the_card_has_no_secrets(server):
    answer = server.ask("GET", "/api/model")
    card = answer.json()
    assert (card["name"], card["threshold"], card["data"]["synthetic"]) == ("toy", 0.6, True)
    assert b"secret" not in answer.body and "self_test" not in card
    assert server.ask("HEAD", "/").status == 200


def test_description_and_measures(server):
    document = server.ask("GET", "/openapi.json").json()
    assert "V2" in json.dumps(document["paths"]["/api/score"])
    page = server.ask("GET", "/api").body.decode()
    assert "POST /api/score" in page and "<script" not in page
    server.score([ROW, ROW])
    assert server.metric("fraudnb_rows_total") >= 2
    assert server.metric('fraudnb_memory_bytes{part="server"}') > 1e7
    assert server.metric('fraudnb_score_bucket{le="+Inf"}') == server.metric("fraudnb_rows_total")


def test_limits_of_rows(server):
    answer = server.score({"columns": {name: [0.5] * 5001 for name in ROW}})
    assert answer.status == 413 and "5,000 rows" in answer.json()["detail"]
    text = b"V1,V2,Amount\n" + b"0,0,1\n" * 5001
    assert server.score(text, Content_Type="text/csv").status == 413


def test_a_slow_body_and_a_torn_one_free_their_places(server):
    """More torn uploads than there are places; then a whole one is taken."""
    for _ in range(6):
        with socket.create_connection(("127.0.0.1", server.port)) as torn:
            torn.sendall(
                b"POST /api/score HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 2000000\r\n\r\nV1"
            )
    text = b"V1,V2,Amount\n0,0,1\n"
    server.until(lambda: server.score(text, Content_Type="text/csv").status == 200)


@pytest.mark.thorough
def test_files_torn_while_they_are_read_leave_nothing(server):
    """Uploads that end in the middle of their rows: no place is kept, no temporary file, and no error is logged."""
    row = b"0.5,0,1," + b"x" * 800 + b"\n"
    head = b"POST /api/score HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 2990000\r\n\r\n"
    for size in range(1_500_000, 2_900_000, 200_000):
        with socket.create_connection(("127.0.0.1", server.port)) as torn:
            torn.sendall(head + (b"V1,V2,Amount,note\n" + row * 3600)[:size])
    server.until(lambda: not deleted_files(server.process.pid))
    assert server.score(b"V1,V2,Amount\n0,0,1\n", Content_Type="text/csv").status == 200
    assert not [event for event in server.events() if event["level"] in ("error", "critical")]


def deleted_files(pid: int) -> list[str]:
    """The files without a name that the process `pid` has open."""
    names = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            names.append(os.readlink(one))
    return [name for name in names if name.endswith("(deleted)")]


def test_page_command_and_python_agree(small_run, tmp_path):
    """The same rows through the API as JSON, CSV and Parquet, through `fraudnb score`, and in Python."""
    from fraudnb.train import fraud_probability, load_pipeline

    rows = pd.read_parquet(small_run / "data/main/test.parquet").head(500)
    model = load_model(small_run / "models/main")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    rows.to_parquet(tmp_path / "rows.parquet", index=False)
    scored = tmp_path / "scored.csv"
    command = [sys.executable, "-c", "from fraudnb.cli import main; main()", "score", str(tmp_path / "rows.csv")]
    command += ["--out", str(scored), "--model", str(small_run / "models/main")]
    subprocess.run(command, check=True, env=clean_environment())
    expected = {"score": pd.read_csv(scored)["probability"], "onnx": predict_probability(model, rows)}
    pipeline = load_pipeline(small_run / "models/main")
    expected["python"] = fraud_probability(pipeline, rows[list(model.inputs)].astype(np.float32))
    with serving(tmp_path / "log", small_run / "models/main", FRAUDNB_READY_PAGES="1") as server:
        records = rows[list(model.inputs)].to_dict("records")
        found = {"json": [row["probability"] for row in server.score(records).json()["rows"]]}
        for name, kind in (("rows.csv", "text/csv"), ("rows.parquet", PARQUET)):
            answer = server.score((tmp_path / name).read_bytes(), Content_Type=kind)
            found[name] = pd.read_csv(io.BytesIO(answer.body))["probability"]
    for name, values in (found | expected).items():
        assert np.abs(np.asarray(values) - expected["onnx"]).max() < 1e-6, name


@pytest.mark.thorough
def test_nothing_breaks_the_server(server, pytestconfig):
    """Generated requests, right and wrong, from the API's own description: none gets a 5xx."""
    done = run_schemathesis(server, examples=pytestconfig.getoption("--cases"))
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def run_schemathesis(server: Server, examples: int) -> subprocess.CompletedProcess:
    """schemathesis on the server's description: no server errors, `examples` cases for each operation and phase."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json"]
    command += ["--checks", "not_a_server_error", "--max-examples", str(examples), "--seed", "1", "--mode", "all"]
    command += ["--phases", "examples,coverage,fuzzing", "--no-color", "--generation-database", "none"]
    return subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=900)


def test_bombs_are_refused(server):
    """A kilobyte that unpacks to a gigabyte, as JSON and as CSV; and numbers in such a depth."""
    packer = zlib.compressobj(9, wbits=31)
    zeros = b"0" * (1 << 20)
    bomb = b"".join(packer.compress(zeros) for _ in range(100)) + packer.flush()
    for kind in ("text/csv", "application/json", PARQUET):
        assert server.score(bomb, Content_Type=kind, Content_Encoding="gzip").status == 413
    assert server.score(b"[" * 60_000, Content_Type="application/json").status == 400
    assert server.score(b"V1,V2,Amount\n" + b'"' + b"1" * 2_000_000, Content_Type="text/csv").status == 422
