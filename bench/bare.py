"""03_train and 04_evaluate without notebooks: their run cells as two functions, for bench/sweep.py to compare with.

They call what the notebooks call, in the same order and on the same files; there are no lessons, no kernel, no executed
copy, and parameters are not checked. Figures and tables are rendered as the notebook renders them (PNG, HTML) or, with
`figures=False`, not made at all.
"""

import io
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import skops.io
from pandas.io.formats.style import Styler

from fraudnb import evaluate as ev
from fraudnb import train as tr
from fraudnb.model import (
    file_sha256,
    input_matrix,
    load_model,
    predict_probability,
    save_bundle,
    to_json,
)
from fraudnb.runs import as_number, project_path
from fraudnb.schema import atomic_path, model_inputs, read_about, read_table, write_table


def show(shown: pd.DataFrame | Styler | None) -> None:
    """Render `shown` as HTML and every open figure as PNG, as a notebook does after a cell."""
    if shown is not None:
        shown._repr_html_()
    for number in plt.get_fignums():
        plt.figure(number).savefig(io.BytesIO(), format="png", bbox_inches="tight")
    plt.close("all")


def train(p: Mapping[str, Any], figures: bool = True) -> None:
    """The run cells of 03_train with the parameters `p`: reads `data_folder`, writes `model_folder`."""
    data = project_path(p["data_folder"])
    table, schema = read_table(data / "train.parquet")
    valid, _ = read_table(data / "valid.parquet")
    inputs = model_inputs(schema, p["use_time"])
    train_arrays, valid_arrays = (tr.as_arrays(one, inputs, schema) for one in (table, valid))
    if p["class_weight"] == "balanced":
        train_arrays = (*train_arrays[:2], tr.class_weights(*train_arrays[1:]))
    train_time = table[schema.time].to_numpy()
    tr.check_rows(p["model"], p["sampler"], train_arrays[1])
    steps = ("sampler", "outlier_columns", "outlier_factor", "reducer", "components", "jobs", "seed")
    pipeline = tr.make_pipeline(p["model"], inputs, schema, **{name: p[name] for name in steps})
    search = p["search"]
    pairs = (
        tr.make_folds(train_arrays[1], train_time, p["folds"], p["fold_order"], p["seed"]) if search != "none" else []
    )
    space = p["search_space"].get(p["model"], tr.default_space(p["model"]))
    fitted, candidates = tr.fit_pipeline(
        pipeline, *train_arrays, search=search, space=space, folds=pairs,
        scoring=p["scoring"], draws=p["search_draws"], seed=p["seed"],
    )  # fmt: skip
    curve = tr.learning_curve(fitted, train_arrays, valid_arrays)
    scores = [tr.weighted_average_precision(fitted, part) for part in (train_arrays, valid_arrays)]
    curve.loc[len(curve)] = (len(train_arrays[1]), int(train_arrays[1].sum()), *scores)
    if figures:
        axis = curve.plot(x="frauds", y=["train", "valid"], style=["o--", "o-"], figsize=(6, 3.2), ylim=(0, 1.02))
        axis.set(xlabel="frauds in the training rows", ylabel="average precision", title="Learning curve")
        show(curve)
    test_matrix = input_matrix(pd.read_parquet(data / "test.parquet", columns=list(inputs)), inputs)
    onnx = tr.to_onnx(fitted, len(inputs))
    tr.check_export(fitted, onnx, np.concatenate([valid_arrays[0], test_matrix]))
    about = read_about(data / "train.parquet")
    best = fitted.named_steps["model"].get_params(deep=False)
    chosen = dict(p) | {"best": {name: str(value) for name, value in best.items()}}
    card = {
        "name": Path(p["model_folder"]).name,
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "schema": asdict(schema),
        "inputs": list(inputs),
        "parameters": {"preprocess": about["preprocess"], "train": chosen},
        "data": {
            "source": about["source"],
            "missing": about["missing"],
            "transactions_sha256": about["transactions_sha256"],
            "train_sha256": file_sha256(data / "train.parquet"),
            "train_rows": len(train_arrays[1]),
            "train_frauds": int(train_arrays[1].sum()),
            "synthetic": about["synthetic"],
        },
        "git_revision": tr.git_revision(project_path(".")),
        "versions": tr.library_versions(),
        "metrics": {"valid_average_precision": scores[1]},
        "reference_quantiles": tr.reference_quantiles(train_arrays[0], inputs, train_arrays[2]),
    }
    save_bundle(project_path(p["model_folder"]), onnx, card, skops.io.dumps(tr.inference_pipeline(fitted)))
    load_model(project_path(p["model_folder"]))


def evaluate(p: Mapping[str, Any], figures: bool = True) -> dict[str, float]:
    """The run cells of 04_evaluate with the parameters `p`: fills `run_folder`; returns the numbers."""
    model = load_model(project_path(p["model_folder"]))
    valid, schema = read_table(project_path(p["data_folder"]) / "valid.parquet")
    test, _ = read_table(project_path(p["data_folder"]) / "test.parquet")
    policy, cost, seed = p["policy"], p["review_cost"], p["seed"]
    test_probability = predict_probability(model, test)
    valid_ranking, valid_days = ev.rank_table(valid, predict_probability(model, valid), schema)
    test_ranking, test_days = ev.rank_table(test, test_probability, schema)
    threshold = (
        p["fixed_threshold"]
        if policy == "fixed"
        else ev.choose_threshold(valid_ranking, policy, cost, p["alert_budget"] * valid_days)
    )
    decision = ev.Decision(threshold, cost, test_days, tuple(p["alert_budgets"]))
    values = ev.all_metrics(test_ranking, decision)
    intervals = ev.bootstrap_intervals(test_ranking, decision, p["resamples"], seed)
    on_valid = ev.all_metrics(valid_ranking, ev.Decision(threshold, cost, valid_days, tuple(p["alert_budgets"])))
    rows = {}
    for other in ("expected_cost", "alert_budget", "f1"):
        at = ev.choose_threshold(valid_ranking, other, cost, p["alert_budget"] * valid_days)
        rows[other] = {"threshold": at} | ev.all_metrics(test_ranking, ev.Decision(at, cost, test_days))
    counts = ev.confusion_matrix(test_ranking, threshold)
    if figures:
        table = pd.DataFrame(
            {
                "test": values,
                "low": {k: v[0] for k, v in intervals.items()},
                "high": {k: v[1] for k, v in intervals.items()},
                "validation": on_valid,
            }
        )
        show(table.style.format("{:,.4f}"))
        ev.plot_gap(table, *(np.average(one.label, weights=one.weight) for one in (valid_ranking, test_ranking)))
        show(None)
        figure = ev.plot_confusion(counts)
        with atomic_path(project_path(p["run_folder"]) / "confusion.png") as temporary:
            figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
        show(None)
        ev.plot_curves({"validation": valid_ranking, "test": test_ranking}, threshold)
        show(None)
        ev.plot_calibration(test_ranking)
        show(None)
        ev.plot_cost({"validation": valid_ranking, "test": test_ranking}, cost, threshold)
        shown = ["threshold", "precision", "recall", "alerts_a_day", "expected_cost"]
        show(pd.DataFrame(rows).T[shown].style.format("{:,.4g}"))
    numbers = ev.flat_metrics(values, intervals, on_valid) | {
        "threshold": threshold,
        "test_rows": len(test),
        "test_frauds": int(test_ranking.label.sum()),
        "test_days": test_days,
        "true_negatives": counts[0, 0],
        "false_positives": counts[0, 1],
        "false_negatives": counts[1, 0],
        "true_positives": counts[1, 1],
        "cost_without_model": ev.cost_by_cut(test_ranking, cost)[0],
    }
    numbers = {name: as_number(value) for name, value in numbers.items()}
    evaluation = {
        "model_sha256": model.card["sha256"],
        "threshold": threshold,
        "policy": {"name": policy, "review_cost": cost, "alert_budget": p["alert_budget"]},
        "metrics": numbers,
        "curve": ev.threshold_curve(test_ranking, cost, test_days),
    }
    with atomic_path(project_path(p["model_folder"]) / "evaluation.json") as temporary:
        temporary.write_bytes(to_json(evaluation))
    scores = pd.DataFrame(
        {
            "row": test["row"],
            "label": test[schema.label],
            "weight": test[schema.weight] if schema.weight in test else 1.0,
            "amount": test[schema.amount],
            "probability": test_probability,
        }
    )
    path = project_path(p["run_folder"]) / "scores.parquet"
    write_table(
        scores.astype({"weight": "float64"}), path, schema, threshold=threshold, model_sha256=model.card["sha256"]
    )
    return numbers
