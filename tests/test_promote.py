"""`fraudnb promote`: one step from a run to the served model, after the gate; back again; and nothing between."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from project import command, environment, paragraph, transactions
from serving import ROW, serving
from test_bundles import PATIENCE, make_bundle

from fraudnb.model import load_model, read_card, to_json
from fraudnb.promote import STEPS, current_of, former_of, promote


@pytest.fixture
def place(tmp_path, small_run) -> Path:
    """A project of this test's own in which `fraudnb run` was done."""
    return Path(shutil.copytree(small_run, tmp_path / "project", symlinks=True))


def spoil_scores(path: Path) -> None:
    """Let the scores in `path` rank at random."""
    table = pq.read_table(path)
    at = table.column_names.index("probability")
    values = np.random.default_rng(0).permutation(table.column(at).to_numpy())
    pq.write_table(table.set_column(at, table.field(at), pa.array(values)), path)


def test_a_run_is_promoted_and_taken_from_then_on(place):
    """Name, parameters and recipe; score, drift and a second promotion; what is not there is refused."""
    done = command(place, "promote", "main")
    assert (done.returncode, done.stdout.split(" (")[0]) == (0, "models/served is now main"), done.stderr
    card = read_card(place / "models/served")
    folder = place / "models/served" / current_of(str(place / "models/served")) / "model"
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert card["name"] == "main" and card["sha256"] == read_card(place / "models/main")["sha256"]
    assert list(recipe) == list(STEPS.values()) and list(card["parameters"]) == list(STEPS)
    assert recipe["00_download"]["source"] == "sample:20000" and recipe["04_evaluate"]["resamples"] == 100
    assert not any(name.endswith("_folder") for section in recipe.values() for name in section)

    transactions(50).to_csv(place / "in.csv", index=False)
    scored = command(place, "score", "in.csv", "--out", "out.csv")
    assert scored.returncode == 0 and "The model: models/served" in scored.stderr
    assert "models/main" not in command(place, "drift", "in.csv").stderr
    assert "is served already" in command(place, "promote", "main").stderr
    for words, said in (
        (("--back",), "There is no former model"),
        (("mian",), "There is no run and no folder 'mian'. Did you mean 'main'?"),
        ((), "Name the run to promote"),
        (("main", "--back"), "not both"),
    ):
        refused = command(place, "promote", *words)
        assert refused.returncode == 2 and said in paragraph(refused.stderr)


def test_the_gate_refuses_a_worse_model_and_what_cannot_be_held_against(place):
    """Exit code 3, and what is served goes on; 2 where the model cannot be used."""
    root, served = place, str(place / "models/served")
    assert promote("main", served, root).passed
    before = current_of(served)
    for name in ("models", "runs"):
        shutil.copytree(place / name / "main", place / name / "worse")
    card = json.loads((place / "models/worse/card.json").read_text())
    (place / "models/worse/card.json").write_bytes(to_json(card | {"trained_at": "later"}))
    spoil_scores(place / "runs/worse/scores.parquet")
    # the executed notebook names the folder of the run it was copied from
    notebook = place / "runs/worse/04_evaluate.ipynb"
    notebook.write_text(notebook.read_text().replace("models/main", "models/worse"))
    done = command(place, "promote", "worse")
    assert done.returncode == 3 and "Worse:" in done.stderr and "The gate refuses worse" in done.stderr, done.stderr

    colleague = shutil.copytree(place / "models/worse", place / "colleague")
    done = command(place, "promote", "colleague")
    assert done.returncode == 3 and "fraudnb run 04_evaluate --name NAME" in done.stderr, done.stderr

    (colleague / "evaluation.json").unlink()
    assert "no threshold" in paragraph(command(place, "promote", "colleague").stderr)
    (place / "models/worse/evaluation.json").write_bytes(
        to_json(json.loads((place / "models/worse/evaluation.json").read_text()) | {"threshold": 0.123})
    )
    assert "is of another evaluation" in paragraph(command(place, "promote", "worse").stderr)
    assert current_of(served) == before


def test_damaged_models_are_refused(tmp_path):
    """Another self-test, other columns, another's evaluation, cut off, a format of tomorrow: what is served stays."""
    served = str(tmp_path / "models/served")
    promote(str(make_bundle(tmp_path / "models/main", 1)), served, tmp_path)
    before = current_of(served)

    def spoilt(number: int, **changed) -> str:
        folder = make_bundle(tmp_path / f"models/m{number}", number)
        card = json.loads((folder / "card.json").read_text())
        (folder / "card.json").write_bytes(to_json(card | changed))
        return str(folder)

    test = read_card(tmp_path / "models/main")["self_test"]
    other = Path(spoilt(5))
    (other / "evaluation.json").write_bytes(to_json({"model_sha256": "0" * 64, "threshold": 0.5}))
    cut = Path(spoilt(6))
    (cut / "model.onnx").write_bytes((cut / "model.onnx").read_bytes()[:100])
    for place, said in (
        (spoilt(2, self_test=test), "fails its self-test"),
        (spoilt(3, inputs=["V1", "V9", "Amount"]), "other columns"),
        (spoilt(4, format=2), "has format 2, and this fraudnb reads 1 at most: install a newer fraudnb"),
        (str(other), "no threshold"),
        (str(cut), "SHA-256 differs"),
    ):
        done = command(tmp_path, "promote", place)
        assert done.returncode == 2 and said in paragraph(done.stderr), done.stderr
    assert current_of(served) == before and load_model(served).card["name"] == "main"


def test_bundles_from_before_formats_are_read_and_promoted(place):
    """Without `format` and without the parameters of all steps: scores are the same, the recipe says what is known."""
    rows = transactions(50)
    rows.to_csv(place / "in.csv", index=False)
    command(place, "score", "in.csv", "--model", "models/main", "--out", "new.csv")
    for name in ("card.json", "evaluation.json"):
        content = json.loads((place / "models/main" / name).read_text())
        content.pop("format")
        if "preprocess" in content["parameters"]:
            content["parameters"].pop("download")
        if name == "evaluation.json":
            content.pop("parameters")
        (place / "models/main" / name).write_bytes(to_json(content))
    command(place, "score", "in.csv", "--model", "models/main", "--out", "old.csv")
    pd.testing.assert_frame_equal(pd.read_csv(place / "old.csv"), pd.read_csv(place / "new.csv"))
    (place / "runs/main/00_download.ipynb").unlink()
    promote("main", str(place / "models/served"), place)
    recipe = yaml.safe_load(next(place.glob("models/served/*/model/recipe.yaml")).read_text())
    assert recipe["00_download"]["source"] == "sample:20000" and recipe["00_download"]["label"] == "Class"
    assert recipe["04_evaluate"]["resamples"] == 100  # from the executed notebook


def test_a_server_notices_the_first_promotion(tmp_path):
    """Started without a model's name it serves models/main, then what is promoted, and that for good."""
    make_bundle(tmp_path / "models/main", 1)
    with serving(tmp_path / "log", "", FRAUDNB_READY_PAGES="1") as server:
        assert server.score([ROW]).json()["model"] == "toy1"
        promote(str(make_bundle(tmp_path / "run", 2)), str(tmp_path / "models/served"), tmp_path)
        server.until(lambda: server.score([ROW]).json()["model"] == "run", PATIENCE)  # without a signal
        (tmp_path / "models/served/current").unlink()
        server.until(lambda: server.events()[-1]["event"] == "model refused" or server.score([ROW]) is None, PATIENCE)
        assert server.score([ROW]).json()["model"] == "run"
        loaded = [event["location"] for event in server.events() if event["event"] == "model loaded"]
        assert loaded == ["models/main", "models/served"]


def test_two_promotions_at_once(tmp_path):
    """One after the other: one is served, the other is the former."""
    served = str(tmp_path / "models/served")
    promote(str(make_bundle(tmp_path / "zero", 0)), served, tmp_path)
    bundles = [make_bundle(tmp_path / name, number) for number, name in enumerate(("first", "second"), start=1)]
    workers = [threading.Thread(target=promote, args=(str(one), served, tmp_path)) for one in bundles]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    folders = [current_of(served), former_of(served, current_of(served))]
    assert {load_model(Path(served, one, "model")).card["name"] for one in folders} == {"first", "second"}


def test_to_and_from_s3(tmp_path, s3_env, bucket):
    """A colleague promotes to S3; what is served there is promoted here; and back on S3."""
    there, here = f"s3://{bucket}/model", str(tmp_path / "models/served")
    for number, name in enumerate(("first", "second"), start=1):
        assert promote(str(make_bundle(tmp_path / name, number)), there, tmp_path).passed
    for words, name in (((there,), "second"), (("--back", "--model", there), "first"), ((there,), "first")):
        done = command(tmp_path, "promote", *words, env=s3_env.env)
        assert done.returncode == 0 and f" is now {name} (" in done.stdout, done.stderr
    assert load_model(here).card["name"] == "first"


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from fraudnb.model import load_model
from fraudnb.promote import current_of, former_of, promote, promote_back

root, kills = Path(sys.argv[1]), int(sys.argv[2])
served, rng = str(root / "models/served"), random.Random(3)
promote("one", served, root)
promote("two", served, root)
began = time.monotonic()
promote("one", served, root)
usual, seen = time.monotonic() - began, set()
for kill in range(kills):
    before, former = current_of(served), former_of(served, current_of(served))
    name = load_model(served).card["name"]
    act = [lambda: promote("two" if name == "one" else "one", served, root), lambda: promote_back(served)][kill % 2]
    child = os.fork()
    if not child:
        act()
        os._exit(0)
    time.sleep(rng.uniform(0, 1.3 * usual))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    now = current_of(served)
    model = load_model(served)
    assert model.card["name"] in ("one", "two") and model.card["threshold"]
    assert former_of(served, now) == (former if now == before else before), (now, before, former)
    seen.add(now != before)
print(kills, "kills:", sorted(seen))
"""


@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.thorough)])
def test_killed_at_any_moment_leaves_the_old_or_the_new(tmp_path, kills):
    for number, name in enumerate(("one", "two"), start=1):
        make_bundle(tmp_path / "models" / name, number)
    run = [sys.executable, "-P", "-c", KILLED, str(tmp_path), str(kills)]
    done = subprocess.run(run, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert kills < 50 or done.stdout.strip().endswith("[False, True]")


@pytest.mark.thorough
def test_a_recipe_makes_the_same_model_again(place):
    """Of a run with parameters of its own, and of a sweep's."""
    given = ("-p", "model", "extra_trees", "-p", "seed", "3", "-p", "valid_size", "0.25", "--name", "mine")
    steps = ("00_download", "02_preprocess", "03_train", "04_evaluate")
    assert command(place, "run", *steps, *given).returncode == 0
    done = command(place, "sweep", "03_train", "--then", "04_evaluate", "-g", "model=decision_tree,lightgbm")
    assert done.returncode == 0, done.stderr
    keys = [f"sweep/{path.parent.name}" for path in (place / "runs/sweep").glob("*/run.json")]
    for number, run in enumerate(["mine", *keys]):
        target = f"models/served{number}"
        assert command(place, "promote", run, "--model", target).returncode == 0
        (recipe,) = (place / target).glob("*/model/recipe.yaml")
        again = command(place, "run", *steps, "-f", recipe, "--name", f"again{number}")
        assert again.returncode == 0, again.stderr
        cards = [read_card(place / one) for one in (target, f"models/again{number}")]
        assert cards[0]["sha256"] == cards[1]["sha256"] and cards[0]["threshold"] == cards[1]["threshold"]
        assert cards[0]["name"] == run
