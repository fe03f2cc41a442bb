"""What strangers may try on `fraudnb serve`, each with its refusal; and what breaks around it, which it survives."""

import contextlib
import http.client
import io
import json
import os
import pickle
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import S3Server, start_rclone
from serving import INPUTS, ROW, Server, message, serving, toy_bundle, toy_onnx
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fraudnb.kernels import immortal_count

TOKEN = "a token of the tests"
CSV = {"Content-Type": "text/csv"}
NOBODYS = "00000000-0000-4000-8000-000000000000"  # a kernel


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("attacks")
    limits = {"FRAUDNB_CONNECTIONS": "300", "FRAUDNB_MAX_SECONDS": "5", "AWS_SECRET_ACCESS_KEY": "a secret key"}
    with serving(folder / "log", toy_bundle(folder / "model"), **limits) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a token."""
    folder = tmp_path_factory.mktemp("guarded")
    with serving(folder / "log", toy_bundle(folder / "model"), FRAUDNB_TOKEN=TOKEN, FRAUDNB_READY_PAGES="1") as running:
        yield running


# -- what is reachable


@pytest.mark.parametrize(
    "path",
    [
        "/api/contents", "/api/contents/model/card.json", "/api/terminals", "/api/kernels", "/api/kernelspecs",
        "/api/sessions", f"/api/kernels/{NOBODYS}", "/voila/files/..%2f..%2fetc/passwd", "/voila/files/page.ipynb",
        "/voila/static/../../../etc/passwd", "/voila/static/..%2f..%2f..%2fvoila/app.py", "/voila/static/%2e%2e/x.js",
        "/voila/static//etc/passwd", "/voila/static/voila.js%00.png", "/voila/templates/lab/index.html.j2",
        "/voila/templates/lab/static/../index.html.j2", "/voila/render/page.ipynb", "/voila/tree", "/page.ipynb",
        "/nbs/05_score.ipynb", "/fraudnb/serve.py", "/models/main/card.json", "/model/model.onnx", "/card.json",
        "/files/x", "/lab", "/tree", "/terminals/1", "/static/x.js", "/logout", "/voila/api/contents", "/.env",
        "/voila/labextensions/anywidget/package.json", f"/voila/query/{NOBODYS}", "/voila/execution/1",
    ],
)  # fmt: skip
def test_nothing_else_is_reachable(server, path):
    for method in ("GET", "POST"):
        answer = server.ask(method, path)
        assert answer.status in (404, 405), (method, path)
        assert b"root:" not in answer.body and b"import" not in answer.body


def test_no_page_shows_source(server):
    answer = server.ask("GET", "/")
    assert answer.status == 200
    assert b"show_page" not in answer.body and b"import" not in answer.body.split(b"jupyter-config-data")[1]
    assert (
        b"https://cdn" not in answer.body and b"unsafe-eval" not in answer.headers["content-security-policy"].encode()
    )


# -- a kernel's websocket


@pytest.mark.parametrize(
    "sent",
    [
        message("execute_request", code="1 + 1", silent=False),
        message("input_reply", "stdin", value="x"),
        message("execute_request", "control", code="1"),
        message("comm_open", target_name="jupyter.widget", comm_id="x", data={}),
        message("shutdown_request", "control"),
        message("interrupt_request", "control"),
        message("complete_request", code="imp", cursor_pos=3),
        message("inspect_request", code="open", cursor_pos=1),
        message("history_request"),
        message("debug_request", "control"),
        message("execute_request", "iopub", code="1"),
        "no message",
        "[" * 5000,
        b"\xff" * 40,
    ],
)
def test_nothing_can_be_executed(server, sent):
    cookie, kernel = server.visit()
    with server.channel(cookie, kernel) as channel:
        channel.send(sent)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                assert json.loads(channel.recv(timeout=10))["msg_type"] in ("status", "comm_open")
    assert closed.value.rcvd.code == 1008


def test_widgets_messages_are_answered(server):
    cookie, kernel = server.visit()
    with server.channel(cookie, kernel) as channel:
        channel.send(message("comm_info_request", target_name="jupyter.widget"))
        kinds = []
        while "comm_info_reply" not in kinds:
            kinds.append(json.loads(channel.recv(timeout=10))["msg_type"])


def test_another_visitors_kernel_is_out_of_reach(server):
    (mine, _), (yours, kernel) = server.visit(), server.visit()
    for cookie in (mine, "", "fraudnb_visitor=2|1:0|10:1|15:fraudnb_visitor|4:eA==|" + "0" * 64):
        with pytest.raises(InvalidStatus) as refused:
            server.channel(cookie, kernel)
        assert refused.value.response.status_code == 404
        assert server.ask("POST", f"/voila/api/shutdown/{kernel}", b"", {"Cookie": cookie}).status == 404
        assert server.ask("GET", f"/api/kernels/{kernel}", headers={"Cookie": cookie}).status == 404
    assert server.ask("DELETE", f"/api/kernels/{kernel}", headers={"Cookie": yours}).status == 405
    assert server.ask("POST", f"/api/kernels/{kernel}/restart", b"", {"Cookie": yours}).status == 404
    with server.channel(yours, kernel) as channel:
        channel.send(message("kernel_info_request"))


def test_a_websocket_of_another_site_is_refused(server):
    cookie, kernel = server.visit()
    for origin in (
        "http://evil.example",
        "null",
        f"http://127.0.0.1:{server.port + 1}",
        f"{server.origin}.evil.example",
    ):
        with pytest.raises(InvalidStatus) as refused:
            server.channel(cookie, kernel, origin)
        assert refused.value.response.status_code == 403


def test_kernels_know_no_secret(guarded):
    for process in guarded.until(guarded.kernels) + guarded.zygotes():
        names = process.environ()
        assert not [name for name in names if name.startswith(("AWS", "MODEL", "FRAUDNB_TOKEN"))]
        assert TOKEN not in str(names)


# -- who may ask


def test_a_post_of_another_site_is_refused(server):
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        for path in ("/api/score", "/login"):
            assert server.ask("POST", path, [ROW], headers).status == 403
    assert server.ask("POST", "/api/score", [ROW], {"Origin": server.origin}).status == 200


def test_a_token_is_asked_for_everywhere(guarded):
    bare = Server(guarded.process, guarded.log, guarded.runtime, guarded.port)
    assert [bare.ask("GET", path).status for path in ("/healthz", "/readyz", "/login")] == [200, 200, 200]
    for path in ("/api/model", "/metrics", "/openapi.json", "/api", "/voila/static/voila.js", "/nothing"):
        assert bare.ask("GET", path).status == 401, path
    for wrong in ("Bearer wrong", "Bearer ", "Basic x", f"Bearer {TOKEN}x", "Bearer é"):
        assert bare.ask("POST", "/api/score", [ROW], {"Authorization": wrong.encode().decode("latin-1")}).status == 401
    assert bare.ask("GET", "/").headers["location"] == "/login"
    assert guarded.score([ROW]).status == 200
    with pytest.raises(InvalidStatus) as refused:
        bare.channel("", NOBODYS)
    assert refused.value.response.status_code == 401


def test_people_log_in(guarded):
    bare = Server(guarded.process, guarded.log, guarded.runtime, guarded.port)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert bare.ask("POST", "/login", b"token=wrong", form).status == 401
    answer = bare.ask("POST", "/login", b"token=" + TOKEN.replace(" ", "+").encode(), form)
    cookie = answer.headers["set-cookie"]
    assert answer.status == 303 and "HttpOnly" in cookie and "SameSite=Lax" in cookie
    assert bare.ask("GET", "/api/model", headers={"Cookie": cookie.split(";")[0]}).status == 200
    assert bare.ask("GET", "/api/model", headers={"Cookie": cookie.split(";")[0][:-2] + "00"}).status == 401
    # what another site's form would send has the cookie, and a foreign origin
    headers = {"Cookie": cookie.split(";")[0], "Origin": "http://evil.example"}
    assert bare.ask("POST", "/api/score", [ROW], headers).status == 403


# -- bodies


@pytest.mark.thorough
def test_two_gigabytes_are_refused_before_they_come(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(
            b"POST /api/score HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 2147483648\r\n\r\n"
        )
        assert b" 413 " in client.recv(4096)


@pytest.mark.thorough
def test_two_gigabytes_without_a_length_are_cut_off(server):
    """As many as are taken, 256 MB, and then no more."""
    row, sent = b"0,0,1\n" * 20_000, 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        yield b"V1,V2,Amount\n"
        for _ in range((2 << 30) // len(row)):
            yield row
            sent += len(row)

    with contextlib.suppress(OSError, http.client.HTTPException):
        assert server.score(body(), Content_Type="text/csv").status == 413
    assert sent < 400 << 20
    assert server.score([ROW]).status == 200


@pytest.mark.thorough
def test_parquet_bombs_are_refused(server):
    """Kilobytes that hold two million rows, or one long text a hundred thousand times; and no Parquet at all."""
    zeros = pa.table({name: pa.array([0.0]).take(pa.array([0] * 2_000_000)) for name in INPUTS})
    text = pa.array(["x" * 1_000_000]).dictionary_encode().take(pa.array([0] * 100_000))
    long = pa.table({name: [0.0] * 100_000 for name in INPUTS} | {"note": text})
    for table in (zeros, long):
        target = io.BytesIO()
        pq.write_table(table, target, compression="zstd")
        body = target.getvalue()
        assert len(body) < 3_000_000
        answer = server.ask("POST", "/api/score", body, {"Content-Type": "application/vnd.apache.parquet"})
        assert answer.status in (413, 422)
    for wrong in (b"PAR1" + b"\0" * 100 + b"PAR1", b"", pickle.dumps(1), body[:-50]):
        answer = server.ask("POST", "/api/score", wrong, {"Content-Type": "application/vnd.apache.parquet"})
        assert answer.status == 422
    assert psutil.Process(server.process.pid).memory_info().rss < 600 << 20


def test_a_zip_is_no_type(server):
    assert server.ask("POST", "/api/score", b"PK\3\4", {"Content-Type": "application/zip"}).status == 415
    assert server.ask("POST", "/api/score", b"PK\3\4", CSV | {"Content-Encoding": "br"}).status == 415


@pytest.mark.parametrize(
    "body",
    [b"[NaN]", b'[{"V1": 1e999, "V2": 0, "Amount": 1}]', b"[" * 50_000, b'{"a":' * 10_000, b"9" * 50_000, b"\xff\xfe",
     b'[{"V1": 1, "V1": 2, "V2": 0, "Amount": 1}]', b"null", b'{"rows": {}}', b"", b'"' + b"\\ud800" * 5 + b'"'],
)  # fmt: skip
def test_json_that_is_none(server, body):
    assert server.ask("POST", "/api/score", body, {"Content-Type": "application/json"}).status in (400, 422)


@pytest.mark.thorough
def test_a_slow_client_is_dropped_and_bothers_nobody(server):
    """Headers and bodies that come byte by byte: closed after some seconds; meanwhile others are answered."""
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    head = b"POST /api/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900\r\n"
    try:
        for number, client in enumerate(slow):
            client.sendall(head + (b"\r\n[" if number % 2 else b"X-A: "))
        started = time.monotonic()
        assert server.score([ROW]).status == 200
        assert time.monotonic() - started < 4  # it did not wait for any of them
        for client in slow[1::2]:  # the body's time is 5 s, the headers' 20 s
            client.settimeout(15)
            assert client.recv(100).startswith(b"HTTP/1.1 408 ")
    finally:
        for client in slow:
            client.close()


@pytest.mark.thorough
def test_thousands_of_sockets_leave_the_server_answering(server):
    """As many as this process may open; the server keeps its 300, and answers on a connection it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 12_000), hard))
    kept, opened = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10), []
    try:
        kept.request("GET", "/healthz")
        kept.getresponse().read()
        with contextlib.suppress(OSError):
            while len(opened) < 10_000:
                opened.append(socket.create_connection(("127.0.0.1", server.port), timeout=5))
        assert len(opened) > 900
        kept.request("GET", "/healthz")
        assert kept.getresponse().status == 200
        assert len(psutil.Process(server.process.pid).net_connections("tcp")) < 350
    finally:
        kept.close()
        for client in opened:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    server.until(lambda: alive(server))


def alive(server: Server) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return server.ask("GET", "/healthz").status == 200
    return False


def test_headers_and_logs_cannot_be_forged(server):
    answer = server.ask("GET", "/nothing%0d%0aX-Evil:%201?V1=123456.789", headers={"X-Request-Id": 'a" , "level": "x'})
    assert "x-evil" not in answer.headers and '"' not in answer.headers["x-request-id"]
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET /a\nb HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            client.recv(1000)
    server.score([ROW | {"V1": 123456.789}])
    server.score([ROW | {"V1": "<script>hacked()</script>"}])
    events = server.events()  # each line is one JSON object
    assert "123456.789" not in server.log.read_text() and "hacked" not in server.log.read_text()
    assert {event["level"] for event in events} <= {"info", "warning", "error"}


def test_security_headers_are_on_everything(server):
    for path in ("/", "/api", "/healthz", "/nothing", "/voila/static/voila.js"):
        headers = server.ask("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY", path
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers


def test_too_much_at_once_is_told_when_to_come_back(server):
    """Bodies that stand still take the places; then 429 says so, with Retry-After, and one row is answered as ever."""
    head = b"POST /api/score HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 2000000\r\n\r\nV1"
    waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
    try:
        for client in waiting:
            client.sendall(head)
        time.sleep(0.3)
        answer = server.score(b"V1,V2,Amount\n0,0,1\n", Content_Type="text/csv")
        assert (answer.status, answer.headers["retry-after"]) == (429, "2")
        assert server.score([ROW]).status == 200
    finally:
        for client in waiting:
            client.close()


# -- models


def test_a_new_model_takes_over_and_a_bad_one_does_not(tmp_path):
    """While one row after another is asked for, none of which fails."""
    folder = toy_bundle(tmp_path / "model")
    with serving(tmp_path / "log", folder, FRAUDNB_READY_PAGES="1") as server:
        statuses, ended = [], threading.Event()

        def ask() -> None:
            while not ended.is_set():
                statuses.append(server.score([ROW]).status)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            toy_bundle(folder, "second", slope=2.0)
            server.process.send_signal(signal.SIGHUP)
            server.until(lambda: server.score([ROW]).json()["model"] == "second")
            good = (folder / "card.json").read_bytes()
            for spoil, reason in (
                (lambda: (folder / "model.onnx").write_bytes(pickle.dumps({"a": 1})), "SHA-256 differs"),
                (lambda: (folder / "model.onnx").write_bytes(toy_onnx(3.0)), "SHA-256 differs"),
                (lambda: wrong_self_test(folder), "fails its self-test"),
                (lambda: toy_bundle(folder, "other", inputs=["V1", "V9", "Amount"]), "other columns"),
                (lambda: (folder / "card.json").write_bytes(good[:200]), "is not JSON"),
            ):
                spoil()
                server.process.send_signal(signal.SIGHUP)
                server.until(lambda reason=reason: any(reason in str(event.get("reason")) for event in server.events()))
                assert server.score([ROW]).json()["model"] == "second"
            toy_bundle(folder, "third")
            server.until(lambda: server.score([ROW]).json()["model"] == "third")  # without a signal
        finally:
            ended.set()
            asking.join()
        assert set(statuses) == {200} and len(statuses) > 50


def wrong_self_test(folder: Path) -> None:
    """A bundle whose card and checksum fit, and whose model computes something else than it did."""
    # made apart: a server that looks must never find it while it is still sound
    made = toy_bundle(folder.parent / "wrong", "wrong", slope=2.0)
    card = json.loads((made / "card.json").read_bytes())
    card["self_test"]["probabilities"][0] += 0.01
    (folder / "model.onnx").write_bytes((made / "model.onnx").read_bytes())
    (folder / "card.json").write_text(json.dumps(card))


@pytest.mark.thorough
def test_a_model_bucket_that_is_down_at_boot_and_later(tmp_path):
    """The server starts, says that it has no model, and has one when the bucket is there; and keeps it."""
    store = tmp_path / "store"
    toy_bundle(store / "bank" / "model")
    process, endpoint = start_rclone(store, tmp_path / "rclone.log", "key", "secret")
    process.terminate()
    process.wait()
    env = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    env |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1", "FRAUDNB_READY_PAGES": "1"}
    with serving(tmp_path / "log", "s3://bank/model", ready=False, **env) as server:
        assert [server.ask("GET", path).status for path in ("/healthz", "/readyz", "/")] == [200, 503, 503]
        assert b"no model yet" in server.ask("GET", "/").body
        assert server.score([ROW]).headers["retry-after"] == "5"
        process = restart_rclone(store, tmp_path, endpoint)
        try:
            server.process.send_signal(signal.SIGHUP)
            server.until(lambda: server.ask("GET", "/readyz").status == 200, 40)
            toy_bundle(store / "bank" / "model", "second")
            server.process.send_signal(signal.SIGHUP)
            server.until(lambda: server.score([ROW]).json()["model"] == "second", 30)
        finally:
            process.terminate()
            process.wait()
        server.process.send_signal(signal.SIGHUP)
        server.until(lambda: server.events()[-1]["event"] == "model refused", 30)
        assert server.score([ROW]).json()["model"] == "second"


def restart_rclone(store: Path, folder: Path, endpoint: str):
    """The S3 server again, at the `endpoint` where it was."""
    import shutil
    import subprocess
    import sys

    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    command = [
        program,
        "serve",
        "s3",
        str(store),
        "--addr",
        endpoint.removeprefix("http://"),
        "--auth-key",
        "key,secret",
    ]
    with open(folder / "rclone2.log", "wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


@pytest.mark.thorough
def test_bundles_as_the_deployment_keeps_them(s3: S3Server, bucket: str, tmp_path):
    """`current` names the folder; pointing it elsewhere changes the model."""
    for name in ("one", "two"):
        for file in toy_bundle(tmp_path / name, name).iterdir():
            s3.put(bucket, f"model/{name}/model/{file.name}", file.read_bytes())
    s3.put(bucket, "model/current", b"one\n")
    env = {name: value for name, value in s3.env.items() if name.startswith("AWS_")}
    with serving(tmp_path / "log", f"s3://{bucket}/model", FRAUDNB_READY_PAGES="1", **env) as server:
        assert server.score([ROW]).json()["model"] == "one"
        s3.put(bucket, "model/current", b"two\n")
        server.process.send_signal(signal.SIGHUP)
        server.until(lambda: server.score([ROW]).json()["model"] == "two")


# -- kernels that end, and the server's own end


def test_kernels_end_with_their_tabs(server):
    cookie, kernel = server.visit()
    with server.channel(cookie, kernel) as channel:
        channel.send(message("kernel_info_request"))
        channel.recv(timeout=10)
        assert server.metric('fraudnb_kernels{part="visited"}') >= 1
        assert server.ask("POST", f"/voila/api/shutdown/{kernel}", b"", {"Cookie": cookie}).status == 204
    assert server.ask("GET", f"/api/kernels/{kernel}", headers={"Cookie": cookie}).status == 404
    cookie, kernel = server.visit()
    with server.channel(cookie, kernel):
        pass
    gone = {"Cookie": cookie}
    server.until(lambda: server.ask("GET", f"/api/kernels/{kernel}", headers=gone).status == 404, 10)


def test_a_visitors_kernel_is_small(server):
    """What a kernel with its page has for itself; where Python counts references to all objects, half as much again."""
    server.visit()
    own = [one.memory_full_info().uss for one in server.until(server.kernels)]
    assert own and max(own) < (16 << 20 if immortal_count() else 24 << 20), own


def test_a_killed_kernel_and_a_killed_zygote(server):
    """The page hears of it, and the next visitor gets a page."""
    cookie, kernel = server.visit()
    with server.channel(cookie, kernel) as channel:
        for process in server.until(server.kernels):
            process.kill()
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                channel.recv(timeout=10)
        assert closed.value.rcvd.code == 4000
    server.visit()
    for zygote in server.zygotes():
        zygote.kill()
    server.until(lambda: server.metric('fraudnb_kernels{part="visited"}') == 0, 20)
    server.visit()


@pytest.mark.thorough
def test_visitors_beyond_the_cap_wait(tmp_path):
    with serving(
        tmp_path / "log", toy_bundle(tmp_path / "model"), FRAUDNB_VISITORS="2", FRAUDNB_IDLE_SECONDS="4"
    ) as server:
        visits = [server.visit() for _ in range(2)]
        answer = server.ask("GET", "/")
        assert (answer.status, answer.headers["retry-after"]) == (503, "10")
        assert b'http-equiv="refresh"' in answer.body and b"asks again by itself" in answer.body
        with server.channel(*visits[0]) as channel:  # open, and not used: it ends after the idle time
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    channel.recv(timeout=15)
            assert closed.value.rcvd.code == 4001
        assert server.visit()


def test_the_end_loses_no_accepted_request(tmp_path):
    """SIGTERM while eight clients ask and one sends a file: whatever was accepted is answered; exit code 0."""
    with serving(tmp_path / "log", toy_bundle(tmp_path / "model")) as server:
        server.visit()
        wrong, done, sent, stopping, ended = [], [], [], threading.Event(), threading.Event()

        def ask() -> None:
            while not ended.is_set():
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
                try:
                    connection.connect()
                except OSError:
                    return  # not accepted any more
                try:
                    connection.request("POST", "/api/score", json.dumps([ROW]), {"Content-Type": "application/json"})
                    done.append(connection.getresponse().status)
                except OSError as error:
                    wrong.append(repr(error))
                finally:
                    connection.close()

        def slow_file() -> Iterator[bytes]:
            yield b"V1,V2,Amount\n"
            parts_after = 8
            while parts_after:
                parts_after -= stopping.is_set()
                sent.append(100)
                yield b"0.5,0,1\n" * sent[-1]
                time.sleep(0.1)

        answers = []
        sending = threading.Thread(target=lambda: answers.append(server.score(slow_file(), Content_Type="text/csv")))
        clients = [threading.Thread(target=ask) for _ in range(8)]
        for thread in (sending, *clients):
            thread.start()
        server.until(lambda: len(done) > 50 and sent)
        stopping.set()
        started = time.monotonic()
        assert server.stop() == 0, server.log.read_text()[-3000:]
        assert time.monotonic() - started < 30
        ended.set()
        for thread in (sending, *clients):
            thread.join()
        assert not wrong and set(done) == {200}
        assert len(answers[0].body.splitlines()) == 1 + sum(sent)
        assert not server.kernels()
