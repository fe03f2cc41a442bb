"""Tables with other names, dates and cards; models that are blended, calibrated and fitted again."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from project import command, make_project, paragraph

from fraudnb.model import load_model, predict_probability

SMALL = {"extra_trees": {"n_estimators": 20}, "lightgbm": {"n_estimators": 20}}
OTHER_NAMES = """\
00_download: {source: cards.parquet, time: when, time_kind: datetime, amount: paid, label: bad, entity: card,
              features: [paid, a, b], extra: drop}
02_preprocess: {split: periods, train_period: ["2018-07-25", "2018-08-01"], valid_period: ["2018-08-01", "2018-08-03"],
                test_period: ["2018-08-03", "2018-08-08"], label_delay: 86400, known_entities: drop}
03_train: {model: logistic_regression, scaling: standard, refit: valid, ratios: [paid / b], fold_order: prequential,
           folds: 2, fold_windows: {test: 86400, delay: 86400}}
04_evaluate: {policy: alert_budget, alert_budget: 20, card_budget: 5, resamples: 100, recovery_rate: 0.5}
"""
BLEND = f"""\
00_download: {{source: "sample:20000"}}
03_train: {{model: blend, members: [extra_trees, lightgbm], member_seeds: 2, model_settings: {json.dumps(SMALL)},
            calibration: isotonic, calibration_folds: 3, refit: all}}
04_evaluate: {{resamples: 100, policy: recall, target: 0.5}}
"""


def card_table(rows: int = 6000, cards: int = 300) -> pd.DataFrame:
    """Two weeks of transactions of `cards` cards, a tenth of which are compromised on a day of their own."""
    rng = np.random.default_rng(0)
    seconds, card = np.sort(rng.uniform(0, 14 * 86_400, rows)), rng.integers(0, cards, rows)
    start = np.where(rng.random(cards) < 0.1, rng.uniform(0, 14 * 86_400, cards), np.inf)
    bad = (seconds >= start[card]).astype(int)
    table = {"when": pd.Timestamp("2018-07-25") + pd.to_timedelta(seconds, unit="s"), "card": card, "bad": bad}
    table |= {"paid": rng.exponential(50, rows) * (1 + bad), "a": rng.normal(size=rows) + 2 * bad}
    return pd.DataFrame(table | {"b": rng.uniform(1, 5, rows), "note": "x"})


def numbers(project: Path) -> dict[str, float]:
    return json.loads((project / "runs/main/metrics.json").read_text())


@pytest.fixture(scope="module")
def cards(tmp_path_factory) -> Path:
    project = make_project(tmp_path_factory.mktemp("cards"), OTHER_NAMES)
    card_table().to_parquet(project / "cards.parquet")
    done = command(project, "run", "00", "02", "03", "04")
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture(scope="module")
def blend(tmp_path_factory) -> Path:
    project = make_project(tmp_path_factory.mktemp("blend"), BLEND)
    done = command(project, "run", "00", "02", "03", "04")
    assert done.returncode == 0, done.stderr
    return project


def test_periods_and_delay_by_hand(cards):
    """Each part has the days it names, and no card with a fraud more than a day before the day of its test row."""
    table = card_table()
    first = table[table["bad"] == 1].groupby("card")["when"].min()
    test = pd.read_parquet(cards / "data/main/test.parquet")
    days = table["when"].dt.floor("D")
    known = table["card"].map(first) + pd.Timedelta(days=1) < days
    expected = table.index[(table["when"] >= "2018-08-03") & ~known]
    assert test["row"].tolist() == expected.tolist()
    assert list(test.columns)[:2] == ["row", "when"] and test["when"].min() >= pd.Timestamp("2018-08-03").timestamp()


def test_card_metrics_and_prequential_folds_are_recorded(cards):
    found = numbers(cards)
    low, high = found["card_precision_at_5_low"], found["card_precision_at_5_high"]
    assert 0 < low <= found["card_precision_at_5"] <= high <= 1
    assert 0 < found["card_recall_at_5"] <= 1
    assert 0.3 < found["prequential_average_precision"] <= 1 and found["prequential_spread"] >= 0


@pytest.mark.thorough
def test_model_fitted_again_keeps_the_one_that_set_the_threshold(cards):
    kept, validated = load_model(cards / "models/main"), load_model(cards / "models/main/validated")
    assert kept.card["refit"]["validated_sha256"] == validated.card["sha256"] != kept.card["sha256"]
    test = pd.read_parquet(cards / "data/main/test.parquet")
    scores = pd.read_parquet(cards / "runs/main/scores.parquet")["probability"]
    assert np.allclose(scores, predict_probability(kept, test)), "with refit = valid, what is tested is what is kept"


@pytest.mark.thorough
def test_other_tables_are_scored_by_the_blend_and_by_ratios(cards):
    table = card_table().drop(columns=["bad", "note"]).head(50)
    table.to_csv(cards / "new.csv", index=False)
    done = command(cards, "score", "new.csv", "--out", "scored.csv")
    assert done.returncode == 0, done.stderr
    scored = pd.read_csv(cards / "scored.csv")
    assert list(scored.columns) == [*table.columns, "probability", "decision"] and len(scored) == 50


def test_known_cards_need_an_entity(cards):
    done = command(cards, "run", "00", "02", "-p", "entity", "", "--name", "other")
    assert done.returncode == 2 and "name it with entity" in paragraph(done.stderr).replace("\n", " ")


@pytest.mark.thorough
def test_refit_with_all_rows_is_never_measured_on_them(blend):
    """The scores of the test rows and the threshold are those of the model that had not seen them."""
    kept, validated = load_model(blend / "models/main"), load_model(blend / "models/main/validated")
    test = pd.read_parquet(blend / "data/main/test.parquet")
    scores = pd.read_parquet(blend / "runs/main/scores.parquet")["probability"]
    assert np.allclose(scores, predict_probability(validated, test))
    assert not np.allclose(scores, predict_probability(kept, test))
    rows = sum(len(pd.read_parquet(blend / f"data/main/{part}.parquet")) for part in ("train", "valid", "test"))
    assert kept.card["refit"]["with"] == "all" and kept.card["refit"]["rows"] == rows
    assert "threshold" in kept.card and "had not seen" in kept.card["refit"]["note"]


@pytest.mark.thorough
def test_calibration_is_in_the_graph_and_measured(blend):
    model = load_model(blend / "models/main/validated")
    assert [one.name for one in model.session.get_outputs()] == ["label", "probabilities", "uncalibrated"]
    assert model.card["calibration"]["method"] == "isotonic"
    found = numbers(blend)
    for name in ("ece", "brier"):
        assert found[f"{name}_low"] <= found[f"{name}_difference"] <= found[f"{name}_high"]
        assert np.isclose(found[f"{name}_after"] - found[f"{name}_before"], found[f"{name}_difference"], atol=1e-4)


@pytest.mark.thorough
def test_skops_keeps_the_blend_for_python(blend):
    from fraudnb.train import load_pipeline

    pipeline = load_pipeline(blend / "models/main")
    assert len(pipeline.named_steps["model"].estimators_) == 4
