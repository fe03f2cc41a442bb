"""`fraudnb serve` behind a proxy: whose word counts, a path prefix, and Debian's nginx with TLS and two servers."""

import contextlib
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port
from serving import ROW, Server, serving, toy_bundle

TOKEN = "a token for two"
HTTPS = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "bank.example:8443", "X-Forwarded-Prefix": "/fraud/"}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that trusts the proxies of this machine."""
    folder = tmp_path_factory.mktemp("behind")
    with serving(folder / "log", toy_bundle(folder / "model"), FRAUDNB_TRUSTED_PROXIES="127.0.0.1") as server:
        yield server


def wrong_token(server: Server, **headers: str) -> str:
    """The address that the log has for a log-in with a wrong token and these `headers`."""
    server.ask("POST", "/login", b"token=wrong", {"Content-Type": "application/x-www-form-urlencoded"} | headers)
    return server.until(lambda: [one for one in server.events() if one["event"] == "wrong token"])[-1]["address"]


def test_a_trusted_proxy_speaks_for_its_clients(behind):
    """Secure cookies, HSTS, the origin with its port, and the path of cookies and redirects."""
    answer = behind.ask("GET", "/", headers=HTTPS)
    assert "strict-transport-security" in answer.headers
    assert "Secure" in answer.headers["set-cookie"] and "Path=/fraud/" in answer.headers["set-cookie"]
    assert b'"/fraud/voila/' in answer.body
    assert b"FRAUDNB-BASE" not in answer.body and b'"/voila/static' not in answer.body
    good, bad = ({"Origin": origin} for origin in ("https://bank.example:8443", "https://bank.example"))
    assert behind.score([ROW], **{"Origin": good["Origin"]} | HTTPS).status == 200
    assert behind.score([ROW], **{"Origin": bad["Origin"]} | HTTPS).status == 403
    assert behind.ask("GET", "/openapi.json", headers=HTTPS).json()["servers"] == [{"url": "/fraud"}]
    for path in ("/fraud/api/model", "/api/model"):
        assert behind.ask("GET", path, headers=HTTPS).status == 200


def test_places_are_of_the_clients_behind_a_proxy(behind):
    """Two files of one client leave room for one of another; what a client writes there itself does not count."""
    head = b"POST /api/score HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 900000\r\n"
    taken = [socket.create_connection(("127.0.0.1", behind.port)) for _ in range(2)]
    small = b"V1,V2,Amount\n0,0,1\n"
    try:
        for client in taken:
            client.sendall(head + b"X-Forwarded-For: 192.0.2.1\r\n\r\nV1")

        def status(forwarded: str) -> int:
            return behind.score(small, Content_Type="text/csv", X_Forwarded_For=forwarded).status

        behind.until(lambda: behind.metric("fraudnb_active_requests ") >= 3)  # both files, and this question
        assert status("192.0.2.1") == 429
        assert status("192.0.2.2") == 200
        assert status("192.0.2.2, 192.0.2.1") == 429
    finally:
        for client in taken:
            client.close()


def test_nobody_else_is_believed(tmp_path):
    """Without the setting the same headers change nothing."""
    with serving(tmp_path / "log", toy_bundle(tmp_path / "model"), FRAUDNB_TOKEN=TOKEN) as server:
        assert wrong_token(server, **{"X-Forwarded-For": "6.6.6.6", "X-Real-Ip": "6.6.6.6"}) == "127.0.0.1"
        answer = server.ask("GET", "/", headers=HTTPS)
        assert "strict-transport-security" not in answer.headers
        assert "Secure" not in answer.headers["set-cookie"] and "Path=/;" in answer.headers["set-cookie"] + ";"
        assert server.score([ROW], **{"Origin": "https://bank.example:8443"} | HTTPS).status == 403
        assert server.ask("GET", "/fraud/api/model", headers=HTTPS).status == 404


def test_herokus_router_is_believed_for_one_hop(tmp_path):
    with serving(tmp_path / "log", toy_bundle(tmp_path / "model"), FRAUDNB_TOKEN=TOKEN, DYNO="web.1") as server:
        forged = {"X-Forwarded-For": "6.6.6.6, 192.0.2.7", "X-Real-Ip": "6.6.6.6"}
        assert wrong_token(server, **forged) == "192.0.2.7"


def test_log_ins_hold_over_restarts_until_the_token_changes(tmp_path):
    model, cookies = toy_bundle(tmp_path / "model"), []
    for token, status in ((TOKEN, 200), (TOKEN, 200), ("another token", 303)):
        with serving(tmp_path / "log", model, FRAUDNB_TOKEN=token) as server:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            server.headers = {}
            if not cookies:
                answer = server.ask("POST", "/login", f"token={token.replace(' ', '+')}".encode(), form)
                cookies.append(answer.headers["set-cookie"].split(";")[0])
            assert server.ask("GET", "/", headers={"Cookie": cookies[0]}).status == status


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("FRAUDNB_VISITOR", "3", "FRAUDNB_VISITORS"),
        ("FRAUDNB_TOKEN_", "x", "FRAUDNB_TOKEN"),
        ("FRAUDNB_PREFIX", "https://x/", "must be a path"),
        ("FRAUDNB_TRUSTED_PROXIES", "nginx", "addresses or networks"),
    ],
)
def test_misspelt_settings_stop_the_start(tmp_path, name, value, told):
    from project import BIN, environment

    words = [str(BIN / "fraudnb"), "serve", "--port", "0", "--model", str(toy_bundle(tmp_path / "model"))]
    done = subprocess.run(words, env=environment(**{name: value}), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and told in done.stderr, done.stderr


# -- Debian's nginx


def nginx_conf(folder: Path, port: int, servers: list[int], balance: str, pass_prefix: bool) -> str:
    """What docs/deploy.md says, for `servers` and with another way to `balance`, as a whole configuration."""
    text = (Path(__file__).parent.parent / "docs/deploy.md").read_text(encoding="utf-8")
    conf = re.search(r"```nginx\n(.*?)```", text, re.DOTALL)[1]
    for one, ours in zip((8866, 8867), servers, strict=True):
        conf = conf.replace(f"127.0.0.1:{one}", f"127.0.0.1:{ours}")
    conf = re.sub(r"ip_hash;.*", balance, conf).replace("listen 8443 ssl;", f"listen 127.0.0.1:{port} ssl;")
    conf = conf.replace("http://fraudnb/;", "http://fraudnb;") if pass_prefix else conf
    conf = conf.replace("location", f"ssl_certificate {folder}/c.pem; ssl_certificate_key {folder}/k.pem; location", 1)
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    head = f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}"
    return f"{head} http {{ access_log {folder}/access.log; {places} {conf} }}"


@contextlib.contextmanager
def nginx(folder: Path, servers: list[int], balance: str = "ip_hash;", pass_prefix: bool = False) -> Iterator[int]:
    """Debian's nginx with TLS in front of `servers`, below /fraud/; its port."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    assert program, "this test needs nginx: apt-get install nginx-light"
    folder.mkdir()
    folder.chmod(0o777)
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    make += ["-keyout", str(folder / "k.pem"), "-out", str(folder / "c.pem")]
    subprocess.run(make, check=True, capture_output=True)
    port = free_port()
    (folder / "conf").write_text(nginx_conf(folder, port, servers, balance, pass_prefix))
    process = subprocess.Popen([program, "-e", str(folder / "error.log"), "-c", str(folder / "conf")])
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
        assert process.poll() is None, (folder / "error.log").read_text()
        yield port
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("replicas")
    given = {"FRAUDNB_TRUSTED_PROXIES": "127.0.0.1", "FRAUDNB_TOKEN": TOKEN, "FRAUDNB_READY_PAGES": "1"}
    with contextlib.ExitStack() as stack:
        model = toy_bundle(folder / "model")
        yield [stack.enter_context(serving(folder / f"log{number}", model, **given)) for number in range(2)]


def open_page(browser: Any, port: int) -> Any:
    """The page behind nginx, after the log-in."""
    page = browser.new_context(ignore_https_errors=True).new_page()
    page.set_default_timeout(60_000)
    page.goto(f"https://localhost:{port}/fraud/")
    assert page.url.endswith("/fraud/login")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button").click()
    return page


def test_the_page_behind_nginx(replicas, browser, tmp_path):
    """TLS, another port than 443, below /fraud/, two servers: a person logs in, scores a row and a file."""
    with nginx(tmp_path / "nginx", [one.port for one in replicas]) as port:
        page = open_page(browser, port)
        page.wait_for_selector("main.fraudnb[data-ready]")
        assert all(one["secure"] and one["path"] == "/fraud/" for one in page.context.cookies())
        for name, value in ROW.items():
            page.get_by_label(name, exact=True).fill(str(value))
        page.get_by_role("button", name="Score", exact=True).click()
        page.wait_for_selector("[data-probability]")
        page.get_by_role("tab", name="A file").click()
        file = {"name": "rows.csv", "mimeType": "text/csv", "buffer": b"V1,V2,Amount\n0.5,0,1\n0.1,0,1\n"}
        page.get_by_label("Drop a CSV or Parquet file here").set_input_files(file)
        page.get_by_text("2 transactions of rows.csv were scored").wait_for()
        page.context.close()


@pytest.mark.thorough
def test_the_page_behind_an_nginx_that_passes_the_prefix_on(replicas, browser, tmp_path):
    with nginx(tmp_path / "nginx", [one.port for one in replicas], pass_prefix=True) as port:
        page = open_page(browser, port)
        page.wait_for_selector("main.fraudnb[data-ready]")
        page.context.close()


@pytest.mark.thorough
def test_two_servers_and_no_sticky_sessions(replicas, browser, tmp_path):
    """The log-in holds at both, the API works; the page, whose kernel is at one of them, says what is the matter."""
    with nginx(tmp_path / "nginx", [one.port for one in replicas], balance="") as port:
        page = open_page(browser, port)
        page.wait_for_url("**/fraud/")
        for _ in range(6):
            page.goto(f"https://localhost:{port}/fraud/")
            page.wait_for_load_state()
            assert "login" not in page.url
            page.wait_for_timeout(4000)
            assert "object at 0x" not in page.inner_text("body")
        page.context.close()


@pytest.mark.thorough
def test_a_refusal_is_seen_through_nginx(replicas, tmp_path):
    """Four clients with 35 MB at once: those that are too many get 429 or 503, and nginx has no 502 to give."""
    body = b"V1,V2,Amount\n" + b"0.5,0,1\n" * 4_400_000
    context = ssl._create_unverified_context()
    head = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/csv"}
    with nginx(tmp_path / "nginx", [one.port for one in replicas]) as port:
        waiting = []
        for _ in range(2):
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
            connection.putrequest("POST", "/fraud/api/score")
            for name, value in {**head, "Content-Length": str(len(body))}.items():
                connection.putheader(name, value)
            connection.endheaders(body[:100_000])
            waiting.append(connection)
        statuses = []
        for _ in range(4):
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
            connection.request("POST", "/fraud/api/score", body, head)
            answer = connection.getresponse()
            statuses.append((answer.status, json.loads(answer.read())["status"]))
            connection.close()
        for connection in waiting:
            connection.close()
        assert set(statuses) == {(429, 429)}
