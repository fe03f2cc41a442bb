"""A real `fraudnb serve` for tests: started, asked over HTTP and websockets, and ended."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from conftest import clean_environment, processes_of
from onnx import TensorProto, helper
from websockets.sync.client import ClientConnection, connect

from fraudnb.model import make_self_test, save_bundle

INPUTS = ["V1", "V2", "Amount"]
QUANTILES = {"V1": [-1.0, 0.0, 1.0], "V2": [-2.0, 0.5, 2.0], "Amount": [1.0, 20.0, 300.0]}


def toy_onnx(slope: float = 1.0) -> bytes:
    """A model whose probability is sigmoid(`slope` * V1)."""
    numbers = {"from": 0, "to": 1, "axis": 1}
    fixed = [helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in numbers.items()]
    fixed += [helper.make_tensor(name, TensorProto.FLOAT, [1], [value]) for name, value in (("k", slope), ("one", 1.0))]
    nodes = [
        helper.make_node("Slice", ["X", "from", "to", "axis"], ["v"]),
        helper.make_node("Mul", ["v", "k"], ["kv"]),
        helper.make_node("Sigmoid", ["kv"], ["p"]),
        helper.make_node("Sub", ["one", "p"], ["n"]),
        helper.make_node("Concat", ["n", "p"], ["both"], axis=1),
        helper.make_node("ArgMax", ["both"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [("label", TensorProto.INT64, [None]), ("both", TensorProto.FLOAT, [None, 2])]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, len(INPUTS)])],
        [helper.make_tensor_value_info(*one) for one in outputs],
        fixed,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def toy_bundle(folder: Path, name: str = "toy", slope: float = 1.0, inputs: list[str] | None = None) -> Path:
    """A bundle of `toy_onnx` in `folder`, with everything that the server looks at."""
    inputs = inputs or INPUTS
    schema = {"time": "Time", "amount": "Amount", "label": "Class", "weight": "", "entity": "", "features": inputs[:2]}
    onnx = toy_onnx(slope)
    card = {
        "name": name,
        "trained_at": "2026-01-01T00:00:00+00:00",
        "inputs": inputs,
        "schema": schema,
        "threshold": 0.6,
        "curve": [{"threshold": 0.6, "precision": 0.9, "recall": 0.5, "alerts_a_day": 2.0, "expected_cost": 10.0}],
        "data": {
            "source": "/secret/place",
            "synthetic": True,
            "missing": "refuse",
            "train_rows": 10,
            "train_frauds": 1,
        },
        "reference_quantiles": {new: QUANTILES[old] for new, old in zip(inputs, INPUTS, strict=True)},
    }
    card["self_test"] = make_self_test(onnx, card["reference_quantiles"], inputs)
    save_bundle(folder, onnx, card)
    return folder


ROW = {"V1": 0.5, "V2": 0.0, "Amount": 1.0}


@dataclass
class Answer:
    """Status, headers (names in lower case) and body of an HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A running `fraudnb serve` on 127.0.0.1:`port`; what it logs goes to the file `log`."""

    process: subprocess.Popen
    log: Path
    runtime: Path
    port: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def origin(self) -> str:
        return self.url

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """The answer to a request; a body that is no bytes goes as JSON."""
        sent = dict(self.headers)
        if body is not None and not isinstance(body, bytes) and not hasattr(body, "__next__"):
            body, sent = json.dumps(body).encode(), sent | {"Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, sent | dict(headers or {}), encode_chunked=hasattr(body, "__next__"))
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def score(self, body: Any, query: str = "", **headers: str) -> Answer:
        return self.ask("POST", f"/api/score{query}", body, {k.replace("_", "-"): v for k, v in headers.items()})

    def events(self) -> list[dict[str, Any]]:
        """What was logged; a line that is no JSON fails."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def until(self, condition: Any, seconds: float = 15) -> Any:
        """What `condition()` returns once it is true; fails after `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {self.log.read_text()[-3000:]}")

    def metric(self, name: str) -> float:
        """The value of the metric whose line begins with `name`."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return float(next(line for line in lines if line.startswith(name)).split()[-1])

    def zygotes(self) -> list[psutil.Process]:
        """The processes that this server's kernels are forked from: they alone know its runtime folder."""
        return [
            one for one in processes_of(self.runtime) if "zygote_main" in str(one.cmdline()) and not child_of_one(one)
        ]

    def kernels(self) -> list[psutil.Process]:
        """The processes of visitors' kernels."""
        return [child for zygote in self.zygotes() for child in zygote.children()]

    def visit(self) -> tuple[str, str]:
        """A visitor's cookie and kernel id, from a page."""
        answer = self.ask("GET", "/")
        assert answer.status == 200, answer.body
        cookie = answer.headers["set-cookie"].split(";")[0]
        config = answer.body.split(b'id="jupyter-config-data"')[1].split(b">", 1)[1].split(b"</script>")[0]
        return cookie, json.loads(config)["kernelId"]

    def channel(self, cookie: str, kernel: str, origin: str | None = None) -> ClientConnection:
        """An open websocket to `kernel`."""
        address = f"ws://127.0.0.1:{self.port}/api/kernels/{kernel}/channels?session_id=test"
        headers = {"Cookie": cookie} if cookie else {}
        return connect(address, origin=self.origin if origin is None else origin, additional_headers=headers)

    def stop(self, seconds: float = 30) -> int:
        """End it as Heroku does; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextlib.contextmanager
def serving(
    log: Path,
    model: str | Path,
    ready: bool = True,
    before: Sequence[str] = (),
    program: str = "from fraudnb.cli import main; main()",
    port: int = 0,
    **environment: str,
) -> Iterator[Server]:
    """A server with the `model`, and `environment` besides this one's; ready to answer unless `ready` is false.

    The Python `program` is started by the command `before`, if there is one. `port` 0 is one that is free.
    """
    env = clean_environment() | {"NO_PROXY": "*"} | environment
    env.pop("FRAUDNB_TOKEN", None) if "FRAUDNB_TOKEN" not in environment else None
    command = [
        *before,
        sys.executable,
        "-c",
        program,
        "serve",
        "--port",
        str(port),
        "--model",
        str(model),
    ]
    runtime = Path(tempfile.mkdtemp(prefix="fraudnb-run-", dir="/tmp"))
    env["XDG_RUNTIME_DIR"] = str(runtime)
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=env, cwd=log.parent)
    token = environment.get("FRAUDNB_TOKEN")
    server = Server(process, log, runtime, headers={"Authorization": f"Bearer {token}"} if token else {})

    def listening() -> bool:
        assert process.poll() is None, log.read_text()
        found = [event for event in server.events() if event["event"] == "listening"]
        server.port = found[0]["port"] if found else 0
        return bool(found)

    try:
        server.until(listening, 90)
        if ready:
            server.until(lambda: server.ask("GET", "/readyz").status == 200, 60)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for left in processes_of(runtime):
            left.kill()
        shutil.rmtree(runtime)


def child_of_one(process: psutil.Process) -> bool:
    """Whether `process` was forked by a zygote: its parent has the same command line."""
    parent = process.parent()
    return parent is not None and parent.cmdline() == process.cmdline()


def message(kind: str, channel: str = "shell", **content: Any) -> str:
    """A message to a kernel, as a front end sends it."""
    header = {"msg_id": os.urandom(8).hex(), "msg_type": kind, "session": "test", "username": "", "version": "5.3"}
    header["date"] = "2026-01-01T00:00:00Z"
    whole = {
        "channel": channel,
        "header": header,
        "parent_header": {},
        "metadata": {},
        "content": content,
        "buffers": [],
    }
    return json.dumps(whole)
