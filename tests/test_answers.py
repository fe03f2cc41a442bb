"""Every answer says by which model and threshold it is: at each door what it carries gives its numbers again."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from serving import Answer, Server, serving, toy_bundle

from fraudnb.cli import score_folder, score_one
from fraudnb.drift import check_drift, to_html
from fraudnb.errors import InputError
from fraudnb.model import file_sha256, load_model, predict_probability, read_card
from fraudnb.score import decision_rule, read_proof, score_file, withdraw_record

PARQUET = "application/vnd.apache.parquet"
PRICES = {"name": "per_amount", "review_cost": 5.0, "recovery_rate": 0.8}
AWKWARD = 0.1 + 0.2  # whose shortest decimal form has seventeen digits


def rows() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    return pd.DataFrame({"V1": rng.normal(size=300), "V2": 0.0, "Amount": rng.exponential(20, 300).round(2)})


def evaluated(folder: Path, **evaluation: Any) -> Path:
    """`folder` with an evaluation of its model: a threshold, and perhaps a policy."""
    decided = {"model_sha256": file_sha256(folder / "model.onnx"), **evaluation}
    (folder / "evaluation.json").write_text(json.dumps(decided))
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that decides by one threshold, and one that decides by amount."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "single": evaluated(toy_bundle(folder / "single", "näme\r\nX: y"), threshold=AWKWARD),
        "priced": evaluated(toy_bundle(folder / "priced", "priced", 2.0), threshold=0.5, policy=PRICES),
    }


@pytest.fixture(scope="module", params=["single", "priced"])
def served(request, bundles, tmp_path_factory) -> Iterator[tuple[Server, Path]]:
    log = tmp_path_factory.mktemp("served") / "log"
    with serving(log, bundles[request.param], FRAUDNB_READY_PAGES="1") as server:
        yield server, bundles[request.param]


def carried(headers: Mapping[str, str]) -> dict[str, Any]:
    """What the headers of an answer say of the model and the rule."""
    policy = headers.get("fraudnb-policy")
    return {
        "model": unquote(headers["fraudnb-model"]),
        "sha256": headers["fraudnb-model-sha256"],
        "threshold": None if policy else float(headers["fraudnb-threshold"]),
        **({"policy": json.loads(policy)} if policy else {}),
    }


def recomputed(folder: Path, decided: Mapping[str, Any], table: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Probabilities and decisions of `table` by what an answer carries and the bundle that it names."""
    model = load_model(folder)
    assert decided["sha256"] == model.card["sha256"] and decided["model"] == model.card["name"]
    probability = predict_probability(model, table)
    if decided["threshold"] is None:
        prices = decided["policy"]
        alert = probability * table["Amount"].to_numpy() * prices["recovery_rate"] >= prices["review_cost"]
    else:
        alert = probability >= decided["threshold"]
    return probability, ["alert" if one else "pass" for one in alert]


def agrees(folder: Path, decided: Mapping[str, Any], scored: pd.DataFrame) -> None:
    """`scored` has the probabilities and decisions that what it carries gives."""
    probability, decision = recomputed(folder, decided, rows())
    assert np.abs(scored["probability"].astype(float).to_numpy() - probability).max() < 1e-6
    assert scored["decision"].tolist() == decision and set(decision) == {"alert", "pass"}


def parquet() -> bytes:
    content = io.BytesIO()
    rows().to_parquet(content)
    return content.getvalue()


BODIES: dict[str, Callable[[], bytes]] = {
    "application/json": lambda: json.dumps(rows().to_dict("records")).encode(),
    "text/csv": lambda: rows().to_csv(index=False).encode(),
    PARQUET: parquet,
}
READ: dict[str, Callable[[bytes], pd.DataFrame]] = {
    "application/json": lambda body: pd.DataFrame(json.loads(body)["rows"]),
    "text/csv": lambda body: pd.read_csv(io.BytesIO(body)),
    "application/x-ndjson": lambda body: pd.DataFrame(map(json.loads, body.splitlines())),
}


def ask(server: Server, kind: str, wanted: str, query: str = "") -> Answer:
    return server.score(BODIES[kind](), query, Content_Type=kind, Accept=wanted)


@pytest.mark.parametrize("query", ["", "?threshold=0.7"])
def test_every_answer_of_the_api_carries_what_it_is_of(served, query):
    """Three kinds of body, three kinds of answer, by the model's own rule and by a given threshold."""
    server, folder = served
    for kind in BODIES:
        for wanted in READ:
            answer = ask(server, kind, wanted, query)
            assert answer.status == 200, (kind, wanted, answer.body[:300])
            decided = carried(answer.headers)
            assert (decided["threshold"] == 0.7) == bool(query)
            agrees(folder, decided, READ[wanted](answer.body))
            if wanted == "application/json":
                content = answer.json()
                assert {name: content[name] for name in decided} == decided


def test_what_the_server_says_of_itself_carries_it_too(served):
    """/readyz, the measures and the line of log; nothing of a row is among it."""
    server, folder = served
    sha256 = file_sha256(folder / "model.onnx")
    decided = carried(server.ask("GET", "/readyz").headers)
    assert decided["sha256"] == sha256 == server.ask("GET", "/api/model").json()["sha256"]
    lines = server.ask("GET", "/metrics").body.decode().split("\n")
    (line,) = [one for one in lines if one.startswith("fraudnb_model_info")]
    assert f'sha256="{sha256}"' in line
    name = ask(server, "text/csv", "text/csv").headers["x-request-id"]
    (told,) = server.until(lambda: [one for one in server.events() if one.get("id") == name])
    assert [told[name] for name in ("rows", "sha256", "threshold", "status")] == [
        300,
        sha256,
        decided["threshold"],
        200,
    ]


def test_only_the_model_that_was_asked_for_answers(served):
    """409 with the model that is there, for each kind of body; and what cannot be asked for is refused."""
    server, folder = served
    sha256 = file_sha256(folder / "model.onnx")
    for kind in BODIES:
        assert ask(server, kind, "text/csv", f"?model={sha256}").status == 200
        refused = ask(server, kind, "text/csv", f"?model={'0' * 64}")
        assert (refused.status, refused.json()["sha256"]) == (409, sha256)
    assert ask(server, "text/csv", "text/csv", "?model=main").status == 400


def test_reasons_have_a_place_or_are_refused(served):
    server, _ = served
    for kind in BODIES:
        assert ask(server, kind, "text/csv", "?reasons=3").status == 400
        assert len(ask(server, kind, "application/json", "?reasons=2").json()["rows"][0]["reasons"]) == 1
    assert server.score(BODIES["text/csv"](), "?reasons=3", Content_Type="text/csv").status == 400


def test_the_description_names_the_headers(served):
    server, _ = served
    call = server.ask("GET", "/openapi.json").json()["paths"]["/api/score"]["post"]
    assert {name.lower() for name in call["responses"]["200"]["headers"]} >= set(
        name for name in ask(server, "text/csv", "text/csv").headers if name.startswith("fraudnb-")
    )
    assert "409" in call["responses"] and "model" in [one["name"] for one in call["parameters"]]


# -- the command


@pytest.fixture(params=["single", "priced"])
def bundle(request, bundles) -> Path:
    return bundles[request.param]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the rows as CSV, as Parquet, and as a folder of two partitions."""
    rows().to_csv(tmp_path / "in.csv", index=False)
    rows().to_parquet(tmp_path / "in.parquet")
    (tmp_path / "parts").mkdir()
    for number, part in enumerate((rows()[:150], rows()[150:])):
        part.to_parquet(tmp_path / f"parts/{number}.parquet", index=False)
    return tmp_path


READERS = {".csv": pd.read_csv, ".parquet": pd.read_parquet}


@pytest.mark.parametrize("ending", READERS)
def test_the_record_beside_a_file(bundle, place, ending):
    """It gives the file's numbers again, and names input and output by their content; with S3's rule for a place."""
    out = place / f"scored{ending}"
    score_file(place / "in.csv", out, bundle)
    record = json.loads((place / f"scored{ending}.json").read_text())
    agrees(bundle, record, READERS[ending](out))
    assert record["format"] == 1 and record["rows"] == 300 and record["version"]
    assert (record["output_sha256"], record["input_sha256"]) == (file_sha256(out), file_sha256(place / "in.csv"))
    assert record["alerts"] == (READERS[ending](out)["decision"] == "alert").sum()


@pytest.mark.parametrize("ending", READERS)
def test_rows_that_say_it_themselves(bundle, place, ending):
    """--with-model: the columns of any row decide it again."""
    out = place / f"scored{ending}"
    score_file(place / "in.parquet", out, bundle, with_model=True)
    scored = READERS[ending](out)
    assert set(scored["model_sha256"]) == {file_sha256(bundle / "model.onnx")}
    if "threshold" in scored:
        alert = scored["probability"] >= scored["threshold"]
    else:
        alert = scored["probability"] * scored["Amount"] * scored["recovery_rate"] >= scored["review_cost"]
    assert (scored["decision"] == np.where(alert, "alert", "pass")).all() and 0 < alert.sum() < 300
    rows().assign(model="mine").to_csv(place / "taken.csv", index=False)
    with pytest.raises(InputError, match="already has a column 'model'"):
        score_file(place / "taken.csv", out, bundle, with_model=True)


def test_partitions_and_the_record_beside_their_folder(bundle, place, capsys):
    """Each partition's own metadata, and one record for all of them; the columns count for what is kept."""
    parts, out = str(place / "parts"), str(place / "scored")
    score_folder(parts, out, str(bundle), None, None)
    record = json.loads((place / "scored.json").read_text())
    agrees(bundle, record, pd.read_parquet(out))
    assert (record["rows"], record["partitions"]) == (300, 2)
    proof = read_proof(f"{out}/0.parquet")
    assert (proof["model"], proof["name"], proof["with_model"]) == (record["sha256"], record["model"], False)
    if record["threshold"] is not None:
        assert proof["threshold"] == record["threshold"]
    for kept in ("", " (2 of them earlier)"):
        score_folder(parts, out, str(bundle), None, None, with_model=True)
        assert f"in 2 partitions{kept}, written to {out}" in capsys.readouterr().err
    assert set(pd.read_parquet(out)["model_sha256"]) == {record["sha256"]}


def test_no_record_of_another_file(bundle, place, monkeypatch):
    """Nothing scored: both stay. Ended in between: no record. Somebody's file: refused. One of many failed: none."""
    out, record = place / "scored.csv", place / "scored.csv.json"
    score_file(place / "in.csv", out, bundle)
    before = [one.read_bytes() for one in (out, record)]
    (place / "bad.csv").write_text("V1,V2,Amount\n1,2,3\nx,2,3\n")
    with pytest.raises(InputError, match="row 2"):
        score_file(place / "bad.csv", out, bundle)
    assert [one.read_bytes() for one in (out, record)] == before
    with monkeypatch.context() as patched:
        patched.setattr("fraudnb.score.write_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            score_file(place / "in.csv", out, bundle, threshold=0.9)
    assert out.read_bytes() != before[0] and not record.exists()
    record.write_text('{"notes": "mine"}')
    with pytest.raises(InputError, match="not from `fraudnb score`"):
        score_file(place / "in.csv", out, bundle)
    assert record.read_text() == '{"notes": "mine"}'
    score_folder(str(place / "parts"), str(place / "all"), str(bundle), None, None)
    (place / "parts/2.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="1 of 3 partitions failed"):
        score_folder(str(place / "parts"), str(place / "all"), str(bundle), 0.9, None)
    assert not (place / "all.json").exists()


def test_standard_output_names_it_beside(bundle, place, capsys):
    score_one(str(place / "in.csv"), None, str(bundle), None)
    told, card = capsys.readouterr(), read_card(bundle)
    assert f"version {card['sha256'][:10]}" in told.err and card["name"] in told.err
    assert ("alerts by amount" if "policy" in card else f"threshold {AWKWARD:g}") in told.err
    assert len(told.out.splitlines()) == 301 and not list(place.glob("*.json"))


def test_a_record_on_s3(bundles, place, s3_env, bucket):
    """Beside the object; while that is replaced, an unfinished one stands there."""
    from fraudnb.fetch import read_bytes

    out = f"s3://{bucket}/out/scored.csv"
    for threshold in (None, 0.9):
        record = score_file(place / "in.csv", out, bundles["single"], threshold)
        assert json.loads(read_bytes(f"{out}.json")) == record
        assert hashlib.sha256(read_bytes(out)).hexdigest() == record["output_sha256"]
    withdraw_record(f"{out}.json")
    assert json.loads(read_bytes(f"{out}.json")) == {"format": 1, "unfinished": True}


def test_drift_says_what_scored(bundles, place):
    bundle = bundles["priced"]
    model = load_model(bundle)
    found = check_drift(str(place / "in.csv"), model, decision_rule(model), str(place / "in.parquet"))
    probability, decision = recomputed(bundle, found, rows())
    assert found["alert_rate"] == pytest.approx(decision.count("alert") / 300)
    assert f"version {model.card['sha256'][:10]}, alerts by amount" in to_html(found, "in.csv")
