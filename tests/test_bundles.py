"""A server is asked all the time while its bundle is trained again, replaced, damaged, deleted: nobody is refused, and
each answer is by the model and threshold that it names."""

import csv
import io
import json
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from conftest import S3Server
from serving import INPUTS, Server, serving, toy_bundle

from fraudnb.model import BUNDLE, load_model, predict_probability, to_json
from fraudnb.promote import promote, promote_back

PATIENCE = 90  # seconds, for what takes a moment where nobody else needs the machine


# -- bundles, each kept so that answers can be recomputed


def make_bundle(folder: Path, number: int) -> Path:
    """A bundle of a model of its own in `folder`, evaluated: the threshold is in evaluation.json, as of 04_evaluate."""
    toy_bundle(folder, f"toy{number}", slope=0.25 + number / 64)
    card = json.loads((folder / "card.json").read_text())
    card.pop("threshold")
    (folder / "card.json").write_bytes(to_json(card))
    facts = {"format": 1, "model_sha256": card["sha256"], "threshold": 0.2 + number % 60 / 100, "metrics": {}}
    (folder / "evaluation.json").write_bytes(to_json(facts))
    return folder


@dataclass
class Stand:
    """A server, the place it serves from, and `kept`, the folder of every bundle that may ever be served there."""

    server: Server
    place: str
    kept: Path
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    made: int = 0

    def new(self) -> Path:
        """Another bundle, in a folder below `kept`."""
        self.made += 1
        return make_bundle(self.kept / str(self.made), self.made)

    def look(self) -> None:
        """Have the server look at its place now."""
        self.server.process.send_signal(signal.SIGHUP)

    def served(self) -> str:
        """The SHA-256 of the model that answers."""
        return self.server.ask("GET", "/api/model").json()["sha256"]

    def until_served(self, bundle: Path) -> None:
        """Wait until the model of `bundle` answers."""
        wanted = json.loads((bundle / "card.json").read_text())["sha256"]
        self.server.until(lambda: self.look() or self.served() == wanted, PATIENCE)


# -- those who ask


@dataclass
class Asked:
    """A request's rows and what came back: status, SHA-256, threshold, probabilities and decisions by row."""

    rows: np.ndarray
    status: int
    sha256: str = ""
    threshold: float | None = None
    probabilities: list[float] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)


def ask_json(server: Server, rows: np.ndarray) -> Asked:
    answer = server.score([dict(zip(INPUTS, map(float, row), strict=True)) for row in rows])
    if answer.status != 200:
        return Asked(rows, answer.status)
    body = answer.json()
    return Asked(rows, 200, body.get("sha256", ""), body.get("threshold"),
                 [row["probability"] for row in body["rows"]], [row["decision"] for row in body["rows"]])  # fmt: skip


def ask_csv(server: Server, rows: np.ndarray) -> Asked:
    lines = [",".join(INPUTS), *(",".join(repr(float(value)) for value in row) for row in rows)]
    answer = server.score("\n".join(lines).encode(), Content_Type="text/csv", Accept="text/csv")
    if answer.status != 200:
        return Asked(rows, answer.status)
    table = list(csv.DictReader(io.StringIO(answer.body.decode())))
    threshold = answer.headers.get("fraudnb-threshold")
    return Asked(rows, 200, answer.headers.get("fraudnb-model-sha256", ""), threshold and float(threshold),
                 [float(row["probability"]) for row in table], [row["decision"] for row in table])  # fmt: skip


@contextmanager
def asking(server: Server, threads: int = 3) -> Iterator[list[Asked]]:
    """All that is asked and answered meanwhile, other rows each time."""
    answers: list[Asked] = []
    ended = threading.Event()

    def ask(number: int) -> None:
        rng = np.random.default_rng(number)
        while not ended.is_set():
            rows = rng.normal(size=(int(rng.integers(1, 30)), len(INPUTS)))
            rows[:, 2] = np.abs(rows[:, 2])
            one = (ask_csv if number == 0 else ask_json)(server, rows)
            answers.append(one)

    workers = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield answers
    finally:
        ended.set()
        for worker in workers:
            worker.join()


def check(answers: list[Asked], bundles: Path) -> str:
    """Recompute every answer with the bundle below `bundles` whose SHA-256 it carries; the counts, as a sentence."""
    models = {}
    for card in bundles.glob("**/card.json"):
        model = load_model(card.parent)
        models[model.card["sha256"]] = model
    refused = [one.status for one in answers if one.status != 200]
    bare = [one for one in answers if one.status == 200 and not (one.sha256 and one.threshold is not None)]
    assert (refused, bare) == ([], [])
    mixed = 0
    for one in answers:
        model = models[one.sha256]
        table = dict(zip(INPUTS, one.rows.T, strict=True))
        expected = predict_probability(model, {name: table[name] for name in model.inputs})
        decided = ["alert" if value >= one.threshold else "pass" for value in one.probabilities]
        same = len(expected) == len(one.probabilities) and np.abs(expected - one.probabilities).max() <= 1e-6
        mixed += not (same and decided == one.decisions and one.threshold == model.card["threshold"])
    assert mixed == 0
    return f"{len(answers)} answers by {len({one.sha256 for one in answers})} models: 0 refused, 0 mixed, 0 bare"


# -- what happens to the bundle meanwhile


def train_again(stand: Stand) -> None:
    """As the pipeline does: model and card, later the evaluation; now and then 04 fails and training comes anew."""
    place, bundle = Path(stand.place), stand.new()
    for name in ("model.onnx", "card.json"):
        shutil.copyfile(bundle / name, place / f".{name}")
        (place / f".{name}").replace(place / name)
    stand.look()
    time.sleep(stand.rng.choice([0.05, 0.5]))
    stand.look()
    if stand.rng.random() < 0.3:
        return train_again(stand)
    shutil.copyfile(bundle / "evaluation.json", place / ".evaluation.json")
    (place / ".evaluation.json").replace(place / "evaluation.json")
    stand.until_served(bundle)


def copy_in_pieces(stand: Stand) -> None:
    """Files in any order, each cut off for a moment."""
    place, bundle = Path(stand.place), stand.new()
    for name in stand.rng.sample(BUNDLE, len(BUNDLE)):
        content = (bundle / name).read_bytes()
        with open(place / name, "wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            stand.look()
            time.sleep(stand.rng.choice([0.02, 0.3]))
            file.write(content[len(content) // 2 :])
        stand.look()
    stand.until_served(bundle)


def leave_it_half_copied(stand: Stand) -> None:
    """One file of another bundle, for longer than the server waits between two looks; then the others."""
    place, bundle, before = Path(stand.place), stand.new(), stand.served()
    names = stand.rng.sample(BUNDLE, len(BUNDLE))
    shutil.copyfile(bundle / names[0], place / names[0])
    time.sleep(2.5)
    assert stand.served() == before and stand.server.ask("GET", "/readyz").status == 200
    for name in names[1:]:
        shutil.copyfile(bundle / name, place / name)
    stand.until_served(bundle)


def delete(stand: Stand) -> None:
    """The whole bundle, or one of its files; then there is another."""
    place, before = Path(stand.place), stand.served()
    if stand.rng.random() < 0.5:
        shutil.rmtree(place)
    else:
        (place / stand.rng.choice(BUNDLE)).unlink()
    stand.look()
    time.sleep(stand.rng.choice([0.3, 2.5]))
    assert stand.served() == before and stand.server.ask("GET", "/metrics").status == 200
    bundle = stand.new()
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(bundle, place)
    stand.until_served(bundle)


def promote_another(stand: Stand) -> None:
    """A promotion, sometimes two at once; and sometimes back, and forth again."""
    root, bundle = stand.kept.parent, stand.new()
    former = stand.served()
    assert promote(str(bundle), stand.place, root).passed
    if stand.rng.random() < 0.5:
        promote_back(stand.place)
        stand.server.until(lambda: stand.look() or stand.served() == former, PATIENCE)
        promote_back(stand.place)
    stand.until_served(bundle)


def replace_on_s3(stand: Stand) -> None:
    """The objects in any order, with time to look between."""
    from fraudnb.fetch import store_file

    bundle = stand.new()
    for name in stand.rng.sample(BUNDLE, len(BUNDLE)):
        store_file(bundle / name, f"{stand.place}/{name}")
        stand.look()
        time.sleep(stand.rng.choice([0.0, 1.0]))
    stand.until_served(bundle)


HAPPENINGS: dict[str, Callable[[Stand], None]] = {
    one.__name__: one for one in (train_again, copy_in_pieces, leave_it_half_copied, delete)
}


def run_load(stand: Stand, happenings: list[Callable[[Stand], None]], seconds: float) -> None:
    """Let each of `happenings` happen once, and again for `seconds`, while it is asked; all answers are checked."""
    with asking(stand.server) as answers:
        until = time.monotonic() + seconds
        rounds = 0
        while rounds < 1 or time.monotonic() < until:
            for happening in happenings:
                happening(stand)
            rounds += 1
    assert len(answers) > 5
    print(f"{' '.join(one.__name__ for one in happenings)}: {rounds} rounds, {check(answers, stand.kept)}")


@contextmanager
def standing(folder: Path, place: str, s3: S3Server | None = None) -> Iterator[Stand]:
    """A server of the bundle at `place`."""
    env = {name: value for name, value in (s3.env if s3 else {}).items() if name.startswith("AWS_")}
    with serving(folder / "log", place, FRAUDNB_READY_PAGES="1", **env) as server:
        yield Stand(server, place, folder / "kept", made=1)


def local_stand(folder: Path):
    """A server of a local bundle in `folder`."""
    bundle = make_bundle(folder / "kept/1", 1)
    return standing(folder, str(shutil.copytree(bundle, folder / "served")))


def test_nobody_is_refused_whatever_happens_to_the_bundle(tmp_path):
    with local_stand(tmp_path) as stand:
        run_load(stand, list(HAPPENINGS.values()), 0)
        refused = [event["reason"] for event in stand.server.events() if event["event"] == "model refused"]
        assert refused and all(one != other for one, other in zip(refused, refused[1:], strict=False))


@pytest.mark.thorough
@pytest.mark.parametrize("name", HAPPENINGS)
def test_nobody_is_refused_for_a_minute(tmp_path, name):
    with local_stand(tmp_path) as stand:
        run_load(stand, [HAPPENINGS[name]], 60)


def promoted_stand(folder: Path, place: str, s3: S3Server | None = None):
    """A server of what was promoted to `place`."""
    promote(str(make_bundle(folder / "kept/1", 1)), place, folder)
    return standing(folder, place, s3)


def test_nobody_is_refused_while_models_are_promoted(tmp_path):
    with promoted_stand(tmp_path, str(tmp_path / "models/served")) as stand:
        stand.rng.seed(1)
        run_load(stand, [promote_another], 0)


@pytest.mark.thorough
def test_nobody_is_refused_while_models_are_promoted_for_a_minute(tmp_path):
    with promoted_stand(tmp_path, str(tmp_path / "models/served")) as stand:
        run_load(stand, [promote_another], 60)


@pytest.mark.thorough
@pytest.mark.parametrize("happening", [promote_another, replace_on_s3])
def test_nobody_is_refused_when_s3_serves(tmp_path, s3_env, bucket, happening):
    place = f"s3://{bucket}/model"
    if happening is promote_another:
        started = promoted_stand(tmp_path, place, s3_env)
    else:
        bundle = make_bundle(tmp_path / "kept/1", 1)
        for name in BUNDLE:
            s3_env.put(bucket, f"model/{name}", (bundle / name).read_bytes())
        started = standing(tmp_path, place, s3_env)
    with started as stand:
        run_load(stand, [happening], 60)
