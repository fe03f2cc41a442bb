"""The policy `per_amount`: what it measures, and that the command, the API, the page, drift, comparisons and Python
decide by it, row by row, as the formula does.
"""

import io
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import expect
from project import command, paragraph
from serving import Server, serving, toy_bundle
from test_page import scored, tab, upload

from fraudnb.model import load_model, predict_probability
from fraudnb.score import plan_job, score_partition, score_table

PARQUET = "application/vnd.apache.parquet"
COST, RATE = 0.05, 0.8  # so cheap a look that some hundred rows of the sample are worth it


@pytest.fixture(scope="module")
def project(small_run, tmp_path_factory) -> Path:
    """The small run, evaluated again with alerts by amount; its test rows as files, without labels."""
    folder = tmp_path_factory.mktemp("rule") / "project"
    shutil.copytree(small_run, folder)
    words = ("-p", "policy", "per_amount", "-p", "review_cost", COST, "-p", "recovery_rate", RATE)
    done = command(folder, "run", "04_evaluate", *words)
    assert done.returncode == 0, done.stderr
    rows = pd.read_parquet(folder / "data/main/test.parquet").drop(columns=["Class", "row"])
    rows.insert(0, "id", [f"t-{number}" for number in range(len(rows))])
    rows.to_csv(folder / "rows.csv", index=False)
    (folder / "parts").mkdir()
    rows.to_parquet(folder / "parts" / "0.parquet", index=False)
    return folder


@pytest.fixture(scope="module")
def rows(project) -> pd.DataFrame:
    """What `rows.csv` holds, with the probability, and what the formula decides."""
    table = pd.read_csv(project / "rows.csv")
    table["probability"] = predict_probability(load_model(project / "models/main"), table)
    alert = table["probability"] * table["Amount"] * RATE >= COST
    return table.assign(expected=np.where(alert, "alert", "pass"))


@pytest.fixture(scope="module")
def server(project, tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server") / "log", project / "models/main") as started:
        yield started


def numbers(folder: Path) -> dict[str, float]:
    return json.loads((folder / "runs/main/metrics.json").read_text())


def at(rows: pd.DataFrame, threshold: float) -> list[str]:
    """What one threshold decides."""
    return np.where(rows["probability"] >= threshold, "alert", "pass").tolist()


# -- the evaluation


def test_decisions_are_measured_and_the_ranking_stays(project, small_run):
    """Counts, shares and money by hand from the scores; metrics of the ranking to the digit as by any policy."""
    scores, found, before = pd.read_parquet(project / "runs/main/scores.parquet"), numbers(project), numbers(small_run)
    alert, fraud = scores["probability"] * scores["amount"] * RATE >= COST, scores["label"] == 1
    assert scores["alert"].equals(alert.rename("alert")) and 10 < alert.sum() < 1000
    evaluation = json.loads((project / "models/main/evaluation.json").read_text())
    assert not alert.equals(scores["probability"] >= evaluation["threshold"]) and "threshold" not in found
    expected = {
        "true_positives": (alert & fraud).sum(),
        "false_positives": (alert & ~fraud).sum(),
        "false_negatives": (~alert & fraud).sum(),
        "precision": fraud[alert].mean(),
        "recall": alert[fraud].mean(),
        "accuracy": (alert == fraud).mean(),
        "alerts_a_day": alert.sum() / found["test_days"],
        "expected_cost": COST * alert.sum() + (scores["amount"] * fraud * np.where(alert, 1 - RATE, 1)).sum(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert found["precision_low"] <= found["precision"] <= found["precision_high"]
    same = [name for name in before if name.startswith(("average_precision", "roc_auc", "brier", "recall_at_"))]
    assert {name: found[name] for name in same} == {name: before[name] for name in same}
    assert evaluation["policy"]["name"] == "per_amount" and evaluation["policy"]["review_cost"] == COST
    assert evaluation["policy"]["recovery_rate"] == RATE and 0 < evaluation["threshold"] < 1
    assert evaluation["score_reference"]["alerts"] == pytest.approx(alert.mean())


def test_other_policies_write_what_they_wrote(small_run):
    """No column more in the scores, no price more in the card."""
    evaluation = json.loads((small_run / "models/main/evaluation.json").read_text())
    assert list(evaluation["policy"]) == ["name", "review_cost", "alert_budget"]
    assert "alert" not in pd.read_parquet(small_run / "runs/main/scores.parquet")


@pytest.mark.thorough
def test_fixed_cost_of_a_fraud_is_one_threshold(small_run, tmp_path):
    """Where each missed fraud loses 50, a look for 5 that saves half of it is worth it from 0.2 on."""
    folder = Path(shutil.copytree(small_run, tmp_path / "project"))
    words = ("-p", "policy", "per_amount", "-p", "missed_cost", 50.0, "-p", "recovery_rate", 0.5)
    done = command(folder, "run", "04_evaluate", *words)
    assert done.returncode == 0, done.stderr
    scores, found = pd.read_parquet(folder / "runs/main/scores.parquet"), numbers(folder)
    alert = scores["probability"] >= 0.2
    assert found["threshold"] == pytest.approx(0.2) and "alert" not in scores
    assert found["false_positives"] == (alert & (scores["label"] == 0)).sum()
    assert command(folder, "diff", "runs/main", "runs/main", "--out", "comment.md").returncode == 0
    compared = {one["name"]: one for one in json.loads((folder / "comment.json").read_text())["metrics"]}
    assert compared["expected_cost"]["head"] == pytest.approx(found["expected_cost"], rel=1e-4)
    table = scores[["row"]].merge(pd.read_parquet(folder / "data/main/test.parquet"), on="row")
    assert score_table(table, load_model(folder / "models/main"))["decision"].tolist() == at(scores, 0.2)


# -- scoring


def test_command_and_python(project, rows):
    """One file, a folder, and a table in Python; and a threshold in place of the rule."""
    single = at(rows, 0.3)
    assert rows["expected"].tolist() != single
    for words, expected in (((), rows["expected"].tolist()), (("--threshold", "0.3"), single)):
        assert command(project, "score", "rows.csv", "--out", "out.csv", *words).returncode == 0
        assert pd.read_csv(project / "out.csv")["decision"].tolist() == expected
        done = command(project, "score", "parts", "--out", "scored", *words)
        assert done.returncode == 0 and "earlier" not in done.stderr, done.stderr
        assert pd.read_parquet(project / "scored/0.parquet")["decision"].tolist() == expected
        assert "1 of them earlier" in command(project, "score", "parts", "--out", "scored", *words).stderr
    model = load_model(project / "models/main")
    assert score_table(rows.drop(columns="probability"), model)["decision"].tolist() == rows["expected"].tolist()
    assert score_table(rows.drop(columns="probability"), model, 0.3)["decision"].tolist() == single


@pytest.mark.thorough
def test_rule_travels_to_other_machines(project, rows, tmp_path):
    """A job as a worker gets it; one threshold that equals the rule's own single one is another result."""
    words = str(project / "parts"), str(tmp_path / "out"), str(project / "models/main")
    job = pickle.loads(pickle.dumps(plan_job(*words)))
    assert score_partition(job, "0.parquet").alerts == (rows["expected"] == "alert").sum()
    assert score_partition(job, "0.parquet").kept
    again = score_partition(plan_job(*words, threshold=job.rule.threshold), "0.parquet")
    assert not again.kept and again.alerts == at(rows, job.rule.threshold).count("alert")


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_api(server, project, rows, threshold):
    """JSON rows and columns, CSV and Parquet; answered as JSON, CSV and NDJSON."""
    query = "" if threshold is None else f"?threshold={threshold}"
    expected = rows["expected"].tolist() if threshold is None else at(rows, threshold)
    names = list(load_model(project / "models/main").inputs)
    found = {
        "rows": server.score(rows[names].to_dict("records"), query).json(),
        "columns": server.score({"columns": rows[names].to_dict("list")}, query).json(),
    }
    bodies = {"text/csv": (project / "rows.csv").read_bytes(), PARQUET: (project / "parts/0.parquet").read_bytes()}
    for kind, body in bodies.items():
        found[kind] = server.score(body, query, Content_Type=kind, Accept="application/json").json()
        table = pd.read_csv(io.BytesIO(server.score(body, query, Content_Type=kind).body))
        assert table["decision"].tolist() == expected
    for answer in found.values():
        assert [row["decision"] for row in answer["rows"]] == expected
        assert answer["threshold"] == threshold
        assert answer.get("policy", {}).get("name") == ("per_amount" if threshold is None else None)
    lines = server.score(rows[names].to_dict("records"), query, Accept="application/x-ndjson").body.splitlines()
    assert [json.loads(line)["decision"] for line in lines] == expected


def test_api_says_how_it_decides(server):
    card, document = server.ask("GET", "/api/model").json(), server.ask("GET", "/openapi.json").json()
    assert card["policy"]["review_cost"] == COST and card["schema"]["amount"] == "Amount"
    call = document["paths"]["/api/score"]["post"]
    assert f"times Amount times {RATE} is at least {COST}" in call["parameters"][0]["description"]
    assert document["components"]["schemas"]["Scored"]["properties"]["threshold"]["type"] == ["number", "null"]


def test_amount_that_is_no_input(tmp_path):
    """The decision needs it all the same: missing and malformed ones are named, unless a threshold is given."""
    bundle = toy_bundle(tmp_path / "models/main")
    card = json.loads((bundle / "card.json").read_text())
    policy = {"name": "per_amount", "review_cost": 5.0, "recovery_rate": 1.0, "missed_cost": 0.0}
    card["schema"]["amount"], card["policy"] = "Price", policy
    (bundle / "card.json").write_text(json.dumps(card))
    (tmp_path / "settings.ini").touch()
    for price, reason in (("", "is missing"), ("1,5", "is not a number"), ("-1", "is negative"), ("inf", "infinite")):
        (tmp_path / "in.csv").write_text(f'V1,V2,Amount,Price\n0,0,1,9\n0,0,1,"{price}"\n')
        told = paragraph(command(tmp_path, "score", "in.csv").stderr)
        assert "column Price, row 2" in told and reason in told
    (tmp_path / "few.csv").write_text("V1,V2,Amount,Price\n0,0,1,9.9\n0,0,1,10\n0.9,0,1,7\n")
    assert [line[-5:] for line in command(tmp_path, "score", "few.csv").stdout.split()[1:]] == [
        ",pass",
        "alert",
        ",pass",
    ]
    (tmp_path / "none.csv").write_text("V1,V2,Amount\n0.9,0,1\n")
    assert "Missing column 'Price'" in paragraph(command(tmp_path, "score", "none.csv").stderr)
    assert command(tmp_path, "score", "none.csv", "--threshold", "0.6").stdout.rstrip().endswith(",alert")
    with serving(tmp_path / "log", bundle, FRAUDNB_READY_PAGES="1") as server:
        plain = {"V1": 0, "V2": 0, "Amount": 1}
        prices = [plain | {"Price": 9.9}, plain | {"Price": 10}]
        assert [row["decision"] for row in server.score(prices).json()["rows"]] == ["pass", "alert"]
        for wrong in (plain, plain | {"Price": "10"}, plain | {"Price": None}, plain | {"Price": -1}):
            (error,) = server.score([plain | {"Price": 1}, wrong]).json()["errors"]
            assert (error["row"], error["column"]) == (2, "Price")
        body = (tmp_path / "none.csv").read_bytes()
        assert server.score(body, Content_Type="text/csv").json()["errors"][0]["column"] == "Price"
        assert server.score(body, "?threshold=0.6", Content_Type="text/csv").body.rstrip().endswith(b",alert")
        assert server.score([plain], "?threshold=0.6").status == 200
        body = (tmp_path / "in.csv").read_bytes()
        (error,) = server.score(body, Content_Type="text/csv").json()["errors"]
        assert (error["row"], error["column"]) == (2, "Price")


# -- what follows from it


@pytest.mark.thorough
def test_compared_with_a_single_threshold(project, small_run, tmp_path):
    """Confusion, money and changed sides are those of the decisions that were made."""
    before = pd.read_parquet(small_run / "runs/main/scores.parquet").sort_values("row", ignore_index=True)
    after = pd.read_parquet(project / "runs/main/scores.parquet").sort_values("row", ignore_index=True)
    once, then, fraud = before["probability"] >= numbers(small_run)["threshold"], after["alert"], after["label"] == 1
    done = command(project, "diff", small_run / "runs/main", "runs/main", "--out", tmp_path / "comment.md")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "comment.json").read_text())
    for side, alert in (("base", once), ("head", then)):
        matrix = [[(alert.eq(one) & fraud.eq(truth)).sum() for one in (False, True)] for truth in (False, True)]
        assert found[side]["confusion"] == matrix
    assert (found["base"]["threshold"] is None, found["head"]["threshold"]) == (False, None)
    gained = then & ~once & ~fraud
    assert found["sides"]["alarms_gained"]["count"] == gained.sum()
    assert found["sides"]["alarms_gained"]["amount"] == pytest.approx(after["amount"][gained].sum(), rel=1e-5)
    metrics = {row["name"]: row for row in found["metrics"]}
    for side, alert in (("base", once), ("head", then)):
        cost = COST * alert.sum() + (after["amount"] * fraud * np.where(alert, 1 - RATE, 1)).sum()
        assert metrics["expected_cost"][side] == pytest.approx(cost, rel=1e-5)
    row = metrics["alerts_a_day"]
    assert row["low"] <= row["head"] - row["base"] <= row["high"]
    assert metrics["average_precision"]["low"] == metrics["average_precision"]["high"] == 0
    text = (tmp_path / "comment.md").read_text(encoding="utf-8")
    assert "head by amount." in text and "only the rule of decision differs" in text


def test_drift_counts_alerts_by_the_rule(project, rows):
    found = json.loads(command(project, "drift", "rows.csv", "--json").stdout)
    assert found["alert_rate"] == pytest.approx((rows["expected"] == "alert").mean())
    assert found["reference_alert_rate"] == pytest.approx(found["alert_rate"])


@pytest.mark.thorough
def test_page(browser, server, project, rows, tmp_path):
    """Header, one transaction, a file and its download decide by amount, until a threshold is chosen."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.goto(server.url)
    page.wait_for_selector("main.fraudnb[data-ready]")
    words = f"probability × amount × {RATE} (the share that is recovered) is at least {COST}, the cost of a review."
    expect(page.locator("header")).to_contain_text(words)
    page.get_by_role("button", name="Load a fraudulent example").click()
    expect(page.locator(".verdict")).to_contain_text("the threshold for an amount of")
    expect(page.locator(".card").first).to_contain_text("a review costs 0.05 and recovers 80.0 % of it")

    def downloaded() -> list[str]:
        tab(page, "A file")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the scored file").click()
        download.value.save_as(tmp_path / "scored.csv")
        return [row["decision"] for row in scored(tmp_path / "scored.csv")]

    upload(page, project / "rows.csv")
    alerts = (rows["expected"] == "alert").sum()
    expect(page.locator(".numbers:visible").first).to_contain_text(f"{alerts:,}alerts")
    expect(page.locator(".numbers:visible").first).to_contain_text("decided by amount")
    assert downloaded() == rows["expected"].tolist()
    tab(page, "Threshold")
    expect(page.locator("#fraudnb-threshold-hint")).to_contain_text(words)
    assert "threshold=" not in page.url
    page.get_by_label("As a number").fill("0.3")
    page.keyboard.press("Enter")
    assert "threshold=0.3" in page.url
    expect(page.locator("#fraudnb-threshold-hint")).to_contain_text("From this probability on")
    assert downloaded() == at(rows, 0.3)
    tab(page, "Threshold")
    page.get_by_role("button", name="The model's own").click()
    assert "threshold=" not in page.url
    assert downloaded() == rows["expected"].tolist()
    page.context.close()
