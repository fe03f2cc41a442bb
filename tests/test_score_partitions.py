"""`fraudnb score` on folders of Parquet: on the disk and on S3, alone and on a real Dask cluster, killed midway."""

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import S3Server, free_port
from project import BIN, FEATURES, environment, paragraph, transactions, wait_until
from test_command import score
from test_fetch import Wire

from fraudnb.cluster import ClusterLost, connect, hand_on, open_executor
from fraudnb.errors import InputError
from fraudnb.fetch import join_location, list_files, read_bytes, store_bytes, store_file
from fraudnb.model import save_bundle
from fraudnb.score import plan_job, score_partition, while_unchanged

INPUTS = [*FEATURES, "Amount"]


def make_model(folder: Path, bias: float = -1.0) -> Path:
    """A bundle in `folder` that was evaluated: a logistic regression with fixed weights."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(7).normal(size=(len(INPUTS), 1)).astype(np.float32)
    weights[-1] = 0.001
    constants = {"W": weights, "b": np.array([bias], np.float32), "one": np.array([1], np.float32)}
    nodes = [
        helper.make_node("Gemm", ["X", "W", "b"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["p"]),
        helper.make_node("Sub", ["one", "p"], ["q"]),
        helper.make_node("Concat", ["q", "p"], ["both"], axis=1),
        helper.make_node("ArgMax", ["both"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [("label", TensorProto.INT64, [None]), ("both", TensorProto.FLOAT, [None, 2])]
    graph = helper.make_graph(
        nodes,
        "logistic",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, len(INPUTS)])],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    roles = {"time": "Time", "amount": "Amount", "label": "Class", "weight": "", "entity": "", "features": FEATURES}
    save_bundle(folder, onnx, {"inputs": INPUTS, "schema": roles})
    sha256 = json.loads((folder / "card.json").read_text())["sha256"]
    (folder / "evaluation.json").write_text(json.dumps({"model_sha256": sha256, "threshold": 0.5}))
    return folder


def part_name(number: int) -> str:
    return f"day=2024-05-{number + 1:02}/part-0.parquet"


@dataclass
class Places:
    """Where a test reads and writes: folders on the disk, or prefixes on S3."""

    source: str
    out: str
    model: str
    whole: pd.DataFrame  # all partitions, one after the other

    def words(self, *more: object) -> list[str]:
        return ["score", self.source, "--out", self.out, "--model", self.model, *map(str, more)]

    def outputs(self) -> list[str]:
        return list_files(self.out)

    def result(self) -> pd.DataFrame:
        """The outputs, one after the other, each of them whole."""
        tables = [pq.read_table(pa.BufferReader(read_bytes(join_location(self.out, name)))) for name in self.outputs()]
        return pa.concat_tables(tables).to_pandas()


def fill(places: Places, parts: int, tmp_path: Path, rows: int = 40) -> Places:
    """`places` with `parts` partitions of `rows` rows, a model, and a note of the program that wrote them."""
    if not (tmp_path / "bundle").exists():
        make_model(tmp_path / "bundle")
    for name in ("card.json", "evaluation.json", "model.onnx"):
        store_file(tmp_path / "bundle" / name, join_location(places.model, name))
    tables = [transactions(rows, frauds=2, seed=number).assign(id=f"{number:03}") for number in range(parts)]
    for number, table in enumerate(tables):
        table.to_parquet(tmp_path / "one.parquet", row_group_size=rows // 2, index=False)
        store_file(tmp_path / "one.parquet", join_location(places.source, part_name(number)))
    store_bytes(b"done", join_location(places.source, "_SUCCESS"))
    return replace(places, whole=pd.concat(tables, ignore_index=True))


def on_disk(tmp_path: Path) -> Places:
    return Places(*(str(tmp_path / name) for name in ("in", "out", "models/main")), whole=pd.DataFrame())


def on_s3(bucket: str) -> Places:
    return Places(*(f"s3://{bucket}/{name}" for name in ("in", "out", "models/main")), whole=pd.DataFrame())


@pytest.fixture(params=["disk", "s3"])
def places(request, s3_env, bucket, tmp_path) -> Places:
    """Four partitions on the disk, then the same on S3."""
    return fill(on_disk(tmp_path) if request.param == "disk" else on_s3(bucket), 4, tmp_path)


def same_as_one_file(places: Places, tmp_path: Path) -> bool:
    """Whether the outputs are, row by row, what scoring all partitions as a single file gives."""
    places.whole.to_parquet(tmp_path / "whole.parquet", index=False)
    done = score(tmp_path, "whole.parquet", "--out", "whole-scored.parquet", "--model", places.model)
    assert done.returncode == 0, done.stderr
    expected = pd.read_parquet(tmp_path / "whole-scored.parquet")
    assert expected["decision"].nunique() == 2
    pd.testing.assert_frame_equal(places.result(), expected)
    return True


def run(tmp_path: Path, words: list[str], code: int = 0) -> str:
    """What the command, in this process, wrote on standard error, without lines of progress."""
    done = score(tmp_path, *words[1:])
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    return without_progress(done.stderr)


def without_progress(stderr: str) -> str:
    return re.sub(r"(?m)^\d+ of \d+ partitions\n", "", stderr)


def refused(tmp_path: Path, words: list[str], code: int = 2) -> str:
    """The paragraph with which `fraudnb score` refuses."""
    return paragraph(run(tmp_path, words, code))


# -- alone


def test_each_partition_to_a_file_of_its_name(places, tmp_path):
    done = score(tmp_path, *places.words()[1:])
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert places.outputs() == [part_name(number) for number in range(4)]
    assert same_as_one_file(places, tmp_path)
    alerts = (places.result()["decision"] == "alert").sum()
    summary = f"160 transactions scored, {alerts} alerts, in 4 partitions, written to {places.out}\n"
    assert done.stderr == summary  # no bar, no log line in less than five seconds


def test_only_what_has_changed_is_scored_again(places, tmp_path, s3):
    """Input, threshold and model each count; what has not changed is not even written again."""
    first = score(tmp_path, *places.words()[1:])
    before = {name: read_bytes(join_location(places.out, name)) for name in places.outputs()}
    again = score(tmp_path, *places.words()[1:])
    assert again.stderr == first.stderr.replace("4 partitions", "4 partitions (4 of them earlier)")

    transactions(50, seed=99).to_parquet(tmp_path / "one.parquet", index=False)
    store_file(tmp_path / "one.parquet", join_location(places.source, part_name(1)))
    third = score(tmp_path, *places.words()[1:])
    assert "170 transactions scored" in third.stderr and "4 partitions (3 of them earlier)" in third.stderr
    after = {name: read_bytes(join_location(places.out, name)) for name in places.outputs()}
    assert [name for name in before if before[name] != after[name]] == [part_name(1)]

    everything = score(tmp_path, *places.words("--threshold", "0")[1:])
    assert "170 transactions scored, 170 alerts, in 4 partitions, written" in everything.stderr
    make_model(tmp_path / "bundle", bias=2.0)
    for name in ("card.json", "evaluation.json", "model.onnx"):
        store_file(tmp_path / "bundle" / name, join_location(places.model, name))
    assert "in 4 partitions, written" in score(tmp_path, *places.words("--threshold", "0")[1:]).stderr


def test_touched_but_unchanged_is_kept(s3_env, tmp_path):
    places = fill(on_disk(tmp_path), 2, tmp_path)
    score(tmp_path, *places.words()[1:])
    for number in range(2):
        Path(places.source, part_name(number)).touch()
    assert "(2 of them earlier)" in score(tmp_path, *places.words()[1:]).stderr


def test_failing_partitions_stop_no_other(places, tmp_path):
    """A value, a column and a file that do not fit: each is named, the rest is there, and mending them is enough."""
    score(tmp_path, *places.words("--threshold", "0.25")[1:])
    earlier = read_bytes(join_location(places.out, part_name(0)))
    good = {number: read_bytes(join_location(places.source, part_name(number))) for number in (0, 2, 3)}
    table = pq.read_table(pa.BufferReader(good[0])).to_pandas()
    table.assign(V3=[None] + [0.0] * 39).to_parquet(tmp_path / "0.parquet", index=False)
    table.drop(columns="V5").to_parquet(tmp_path / "2.parquet", index=False)
    (tmp_path / "3.parquet").write_bytes(good[3][:1000])
    for number in good:
        store_file(tmp_path / f"{number}.parquet", join_location(places.source, part_name(number)))
    message = refused(tmp_path, places.words())
    assert message.startswith("fraudnb: 3 of 4 partitions failed. ")
    assert f"{part_name(0)}: The transactions do not fit the model: column V3, row 1: is missing" in message
    assert f"{part_name(2)}: Missing column 'V5'" in message
    assert f"{part_name(3)}: {join_location(places.source, part_name(3))} cannot be read" in message
    assert f"The others are in {places.out}. When that is mended, the same command" in message
    assert read_bytes(join_location(places.out, part_name(0))) == earlier
    for number, content in good.items():
        store_bytes(content, join_location(places.source, part_name(number)))
    assert "(1 of them earlier)" in score(tmp_path, *places.words()[1:]).stderr
    assert same_as_one_file(places, tmp_path)


@pytest.mark.thorough
def test_a_full_disk_is_a_failed_step(s3_env, tmp_path):
    """What is not the input's fault ends in 1: here a folder of the output that may not be written."""
    places = fill(on_disk(tmp_path), 2, tmp_path)
    Path(places.out).mkdir()
    Path(places.out, "day=2024-05-02").write_text("in the way")
    message = refused(tmp_path, places.words(), code=1)
    assert "1 of 2 partitions failed. day=2024-05-02/part-0.parquet: " in message and "The others are" in message


def test_partition_without_rows(s3_env, tmp_path):
    places = fill(on_disk(tmp_path), 2, tmp_path)
    transactions(5).head(0).to_parquet(Path(places.source, "empty.parquet"), index=False)
    assert "80 transactions scored" in score(tmp_path, *places.words()[1:]).stderr
    empty = pq.read_table(Path(places.out, "empty.parquet"))
    assert len(empty) == 0 and empty.column_names[-2:] == ["probability", "decision"]


def test_somebody_elses_file_is_not_replaced(places, tmp_path):
    """A Parquet file and another one under the names of outputs: refused, and as they were."""
    foreign = {part_name(0): read_bytes(join_location(places.source, part_name(0))), part_name(1): b"PAR1 no, a note"}
    for name, content in foreign.items():
        store_bytes(content, join_location(places.out, name))
    message = refused(tmp_path, places.words())
    assert message.count("is there, but not from `fraudnb score`. Name another place with --out") == 2
    assert {name: read_bytes(join_location(places.out, name)) for name in foreign} == foreign


def test_metadata_longer_than_one_read(s3_env, bucket, tmp_path):
    """The proof is found behind the metadata of thousands of columns in many row groups."""
    places = fill(on_s3(bucket), 1, tmp_path)
    more = pd.DataFrame(0.0, index=range(40), columns=[f"more{number}" for number in range(400)])
    wide = pd.concat([transactions(40), more], axis=1)
    wide.to_parquet(tmp_path / "one.parquet", row_group_size=4, index=False)
    store_file(tmp_path / "one.parquet", join_location(places.source, part_name(0)))
    score(tmp_path, *places.words()[1:])
    assert pq.read_metadata(pa.BufferReader(read_bytes(f"{places.out}/{part_name(0)}"))).serialized_size > 1 << 16
    assert "(1 of them earlier)" in score(tmp_path, *places.words()[1:]).stderr


@pytest.mark.thorough
def test_input_that_changes_meanwhile(s3_env, tmp_path):
    places = fill(on_disk(tmp_path), 1, tmp_path)
    path = Path(places.source, part_name(0))
    blocks = while_unchanged(iter([1, 2]), str(path), "sha256 of another content")
    with pytest.raises(InputError, match="changed while it was being scored"):
        list(blocks)


def test_another_machine_says_where_a_path_was_looked_for(s3_env, tmp_path):
    """What a worker elsewhere answers, and that a model exchanged meanwhile is not used."""
    places = fill(on_disk(tmp_path), 1, tmp_path)
    job = replace(plan_job(places.source, places.out, places.model), host="elsewhere")
    scored = score_partition(replace(job, source=f"{job.source}2"), part_name(0))
    assert scored.code == 2 and "does not exist" in scored.reason and "must be shared by all machines" in scored.reason
    assert (
        "another one than when the command was started"
        in score_partition(replace(job, sha256="0"), part_name(0)).reason
    )
    assert places.outputs() == []


def test_one_file_on_s3(s3_env, bucket, tmp_path):
    places = fill(on_s3(bucket), 1, tmp_path)
    one = f"{places.source}/{part_name(0)}"
    for name in ("scored.parquet", "scored.csv"):
        done = score(tmp_path, one, "--out", f"s3://{bucket}/{name}", "--model", places.model)
        assert done.returncode == 0 and f"written to s3://{bucket}/{name}" in done.stderr, done.stderr
    text = read_bytes(f"s3://{bucket}/scored.csv").decode()
    assert score(tmp_path, one, "--model", places.model).stdout == text and text.count("\n") == 41
    assert list_files(f"s3://{bucket}/out") == []


def test_wrong_usage(places, tmp_path):
    source, out, model, one = places.source, places.out, places.model, f"{places.source}/{part_name(0)}"
    expected = {
        "name the folder or s3:// prefix for the result with --out": [source],
        "below what is read": [source, "--out", f"{source}/scored"],
        "cannot go to": [source, "--out", f"{source}/"],
        "It is empty or does not exist": [f"{source}-2/", "--out", out],
        "It has 'card.json'": [model, "--out", out],
        "is one file. --scheduler shares out": [one, "--out", f"{out}.parquet", "--scheduler", "tcp://127.0.0.1:9"],
        "of the form tcp://HOST:PORT": [source, "--out", out, "--scheduler", "127.0.0.1:9"],
        "There is no model at": [source, "--out", out, "--model", f"{model}2"],
        "between 0 and 1, not 2": [source, "--out", out, "--threshold", "2"],
    }
    for message, words in expected.items():
        chosen = [] if "--model" in words else ["--model", model]
        if message.startswith("It is empty") and not source.startswith("s3://"):
            Path(words[0]).mkdir()
        assert message in refused(tmp_path, ["score", *words, *chosen]), message
    assert places.outputs() == []


def test_s3_that_cannot_be_used(s3_env, bucket, tmp_path, monkeypatch):
    places = fill(on_s3(bucket), 1, tmp_path)
    assert "does not exist" in refused(tmp_path, replace(places, source="s3://no-such-bucket/in").words())
    assert "The bucket does not exist" in refused(tmp_path, replace(places, out="s3://no-such-bucket/out").words())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    assert "may not be accessed" in refused(tmp_path, places.words())


# -- killed, and as processes


def start(words: list[str], env: dict[str, str], stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen([str(BIN / "fraudnb"), *words], env=env, stdout=subprocess.PIPE, stderr=stderr, text=True)


def finish(process: subprocess.Popen[str], code: int = 0, seconds: float = 60) -> str:
    """What the command wrote on standard error, without lines of progress, when it has ended with `code`."""
    out, err = process.communicate(timeout=seconds)
    assert (process.returncode, out) == (code, ""), err
    return without_progress(err or "")


def children(s3: S3Server, **more: str) -> dict[str, str]:
    """The environment of processes that share nothing but S3."""
    settings = {name: value for name, value in s3.env.items() if name.startswith("AWS_")}
    return environment(**settings) | {"PYTHONWARNINGS": "error::ResourceWarning"} | more


def kill_midway(process: subprocess.Popen[str], places: Places, at: int, kill: subprocess.Popen | None = None) -> int:
    """Kill -9 `kill` (default: the command) once `at` outputs are there; how many there are, all of them whole."""
    wait_until(lambda: len(places.outputs()) >= at or process.poll() is not None, "outputs of the command")
    (kill or process).kill()
    if kill is None:
        process.communicate()
    there = len(places.outputs())
    assert at <= there < len(places.whole["id"].unique()), "the command was too fast for this test"
    assert set(places.result().columns) >= {"probability", "decision"}
    return there


def test_killed_and_resumed_alone(s3_env, tmp_path):
    places = fill(on_disk(tmp_path), 40, tmp_path)
    there = kill_midway(start(places.words(), children(s3_env)), places, at=3)
    done = score(tmp_path, *places.words()[1:])
    assert f"in 40 partitions ({there} of them earlier)" in done.stderr
    assert same_as_one_file(places, tmp_path)
    leftover = [path for path in Path(places.out).rglob("*") if path.name.startswith(".")]
    assert leftover == []  # the temporary file of the partition it was killed in went when that was done


def test_bar_on_a_terminal(s3_env, tmp_path):
    places = fill(on_disk(tmp_path), 3, tmp_path)
    above, below = pty.openpty()
    termios.tcsetwinsize(below, (24, 100))
    try:
        finish(start(places.words(), children(s3_env), stderr=below))
        shown = os.read(above, 65536).decode()
    finally:
        os.close(above), os.close(below)
    assert "100%" in shown and "3/3" in shown and "120 transactions scored" in shown


# -- on a cluster


@dataclass
class Cluster:
    address: str
    scheduler: subprocess.Popen
    workers: list[subprocess.Popen]


Launch = Callable[..., tuple[subprocess.Popen, Path]]


@contextlib.contextmanager
def processes(folder: Path, env: dict[str, str]) -> Iterator[Launch]:
    """A function that starts `dask WORDS` in a folder of its own; gives process and log. The block ends them all."""
    started: list[subprocess.Popen] = []

    def launch(name: str, *words: str) -> tuple[subprocess.Popen, Path]:
        (folder / name).mkdir(parents=True)
        path = folder / f"{name}.log"
        with open(path, "wb") as log:
            command = [str(BIN / "dask"), *words]
            process = subprocess.Popen(command, cwd=folder / name, env=env, stdout=log, stderr=log, process_group=0)
        started.append(process)
        return process, path

    try:
        yield launch
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):  # it may have ended, or been killed by the test
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def launch_workers(launch: Launch, address: str, number: int, nanny: bool = False) -> list[subprocess.Popen]:
    """Started workers of one thread each, once they are known to the scheduler."""
    words = ["worker", address, "--nthreads", "1", "--no-dashboard", "--nanny" if nanny else "--no-nanny"]
    workers = [launch(f"worker-{one}", *words) for one in range(number)]
    wait_until(lambda: all(b"Registered to" in log.read_bytes() for _, log in workers), "workers", seconds=40)
    return [process for process, _ in workers]


@contextlib.contextmanager
def cluster(folder: Path, env: dict[str, str], workers: int = 2, nanny: bool = False) -> Iterator[Cluster]:
    """A Dask scheduler and workers."""
    port = free_port()
    words = ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--dashboard-address", "127.0.0.1:0"]
    with processes(folder, env) as launch:
        scheduler, _ = launch("scheduler", *words)
        address = f"tcp://127.0.0.1:{port}"
        yield Cluster(address, scheduler, launch_workers(launch, address, workers, nanny))


@pytest.fixture(scope="module")
def steady(s3, tmp_path_factory) -> Iterator[tuple[Cluster, Wire]]:
    """A cluster of two workers, which see S3 through a wire that counts; no test kills any of it."""
    with Wire(s3.endpoint) as wire:
        env = children(s3, AWS_ENDPOINT_URL=wire.endpoint)
        with cluster(tmp_path_factory.mktemp("cluster"), env) as running:
            yield running, wire


def test_cluster_scores_what_one_file_would_give(steady, s3_env, bucket, tmp_path):
    """Workers share nothing but S3, and fetch the model once each. What they share may also be a disk."""
    running, wire = steady
    places = fill(on_s3(bucket), 12, tmp_path)
    told = run(tmp_path, places.words("--scheduler", running.address))
    assert told.startswith("480 transactions scored, ") and "in 12 partitions, written to" in told
    assert same_as_one_file(places, tmp_path)
    fetched = [line for line in wire.requests if line.startswith(f"GET /{bucket}/models/main/model.onnx")]
    assert 1 <= len(fetched) <= 2

    places = fill(on_disk(tmp_path), 2, tmp_path)
    relative = replace(places, source="in", out="./out/", model="models/main")
    assert "in 2 partitions, written to ./out/" in run(tmp_path, relative.words("--scheduler", running.address))
    assert same_as_one_file(places, tmp_path)


@pytest.mark.thorough
def test_killed_and_resumed_on_a_cluster(steady, s3_env, bucket, tmp_path):
    """Kill -9 of the command: the scheduler drops what has not begun; the next command does that, and nothing twice."""
    running, _ = steady
    places = fill(on_s3(bucket), 20, tmp_path)
    kill_midway(start(places.words("--scheduler", running.address), children(s3_env)), places, at=2)
    told = run(tmp_path, places.words("--scheduler", running.address))
    assert "in 20 partitions (" in told and "of them earlier)" in told
    assert same_as_one_file(places, tmp_path)


@pytest.mark.thorough
def test_worker_without_fraudnb(steady, s3_env, bucket, tmp_path):
    """One such worker among others is enough: it would get its share of the work."""
    running, _ = steady
    places = fill(on_s3(bucket), 1, tmp_path)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "fraudnb.py").write_text("raise ModuleNotFoundError(\"No module named 'fraudnb'\")")
    with processes(tmp_path, children(s3_env, PYTHONPATH=str(tmp_path / "none"))) as launch:
        launch_workers(launch, running.address, number=1)
        message = run(tmp_path, places.words("--scheduler", running.address), code=1)
    assert "cannot run fraudnb" in paragraph(message) and "pip install 'fraudnb[dask]'" in message
    assert places.outputs() == []


@pytest.mark.thorough
def test_killed_worker_then_killed_scheduler(s3_env, bucket, tmp_path):
    """What a lost worker had in hand is done by the other one. A lost scheduler is said at once, and what is left."""
    places = fill(on_s3(bucket), 20, tmp_path)
    with cluster(tmp_path / "cluster", children(s3_env)) as running:
        process = start(places.words("--scheduler", running.address), children(s3_env))
        kill_midway(process, places, at=2, kill=running.workers[0])
        assert "800 transactions scored" in finish(process)
        assert same_as_one_file(places, tmp_path)

        again = replace(places, out=f"{places.out}-2")
        process = start(again.words("--scheduler", running.address), children(s3_env))
        kill_midway(process, again, at=2, kill=running.scheduler)
        told = paragraph(finish(process, code=1, seconds=30))
    assert (
        "The connection to the scheduler broke off" in told and "of 20 partitions are done; repeat for the rest" in told
    )
    assert "of them earlier)" in score(tmp_path, *again.words()[1:]).stderr


@pytest.mark.thorough
def test_frozen_scheduler(s3_env, tmp_path):
    """It keeps its connections and says nothing, which Dask alone would wait out for ever."""
    with cluster(tmp_path / "cluster", children(s3_env), workers=0) as running:
        wait_until(lambda: b"Scheduler at" in (tmp_path / "cluster" / "scheduler.log").read_bytes(), "the scheduler")
        with open_executor(running.address, patience=1.5) as executor:
            future = executor.submit(time.sleep, 0)
            running.scheduler.send_signal(signal.SIGSTOP)
            with pytest.raises(ClusterLost, match="The scheduler has not answered for 1.5 s"):
                future.result(timeout=20)
            with pytest.raises(ClusterLost):
                executor.submit(time.sleep, 0)


@dataclass
class Unreachable:
    """A future of Dask whose result, there on a worker, cannot be fetched the first `times` times."""

    times: int
    status: str = "finished"

    def __await__(self) -> Generator[None, None, str]:
        yield from asyncio.sleep(0).__await__()
        self.times -= 1
        if self.times >= 0:
            raise OSError("Stream is closed")
        return "result"


@pytest.mark.thorough
def test_result_that_cannot_be_fetched():
    """It is asked for again; if in vain, the future ends all the same, which in Dask's own executor it does not."""
    endings: list[tuple] = []
    for times, attempts in ((1, 2), (2, 2)):
        asyncio.run(hand_on(Unreachable(times), lambda *ending: endings.append(ending), attempts))
    assert endings[0] == ("result",)
    assert endings[1][0] is None and isinstance(endings[1][1], ClusterLost)


DEADLY = """
import os
from fraudnb import score

def read_blocks(path, read=score.read_blocks):
    for block in read(path):
        if "deadly" in block.column_names:
            os._exit(9)
        yield block

score.read_blocks = read_blocks
"""


@pytest.mark.thorough
def test_partition_that_kills_its_workers(s3_env, bucket, tmp_path):
    """As one does for which memory is too small: told as its failure, beside bad rows; the others are done."""
    places = fill(on_s3(bucket), 4, tmp_path)
    bad = {1: transactions(5).assign(deadly=1), 2: transactions(5).assign(V1=np.inf)}
    for number, table in bad.items():
        table.to_parquet(tmp_path / "one.parquet", index=False)
        store_file(tmp_path / "one.parquet", join_location(places.source, part_name(number)))
    (tmp_path / "deadly.py").write_text(DEADLY)
    more = {"DASK_DISTRIBUTED__WORKER__PRELOAD": str([str(tmp_path / "deadly.py")])}
    more |= {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    with cluster(tmp_path / "cluster", children(s3_env, **more), workers=1, nanny=True) as running:
        message = paragraph(run(tmp_path, places.words("--scheduler", running.address), code=1))
    assert f"2 of 4 partitions failed. {part_name(1)}: 2 workers died while they did this" in message
    assert f"{part_name(2)}: The transactions do not fit the model: column V1, rows 1, 2, 3" in message
    assert places.outputs() == [part_name(number) for number in (0, 3)]


def test_no_scheduler_there(s3_env, tmp_path):
    """Nobody at the address: an answer after some seconds. The same for a server that takes calls and says nothing."""
    places, port, started = fill(on_disk(tmp_path), 1, tmp_path), free_port(), time.monotonic()
    message = refused(tmp_path, places.words("--scheduler", f"tcp://127.0.0.1:{port}"), code=1)
    assert f"No Dask scheduler answers at tcp://127.0.0.1:{port}" in message and "`dask worker`" in message
    assert time.monotonic() - started < 15 and places.outputs() == []
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(ClusterLost, match="No Dask scheduler answers"):
        connect(f"tcp://127.0.0.1:{deaf.getsockname()[1]}", seconds=0.5)


def test_dask_is_not_installed(s3_env, tmp_path):
    places = fill(on_disk(tmp_path), 1, tmp_path)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "distributed.py").write_text("raise ModuleNotFoundError('distributed')")
    env = children(s3_env)
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "none"), env["PYTHONPATH"]])
    told = finish(start(places.words("--scheduler", "tcp://127.0.0.1:9"), env), code=2)
    assert "pip install 'fraudnb[dask]'" in paragraph(told)
