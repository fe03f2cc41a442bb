"""Downloads and uploads against real servers: what a network, a disk and a user can do wrong."""

import contextlib
import gc
import hashlib
import http.server
import json
import logging
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fraudnb.errors import InputError
from fraudnb.fetch import (
    download_data_from_s3,
    download_url,
    exists,
    fetch,
    file_version,
    join_location,
    list_files,
    memory_path,
    read_bytes,
    store_bytes,
    store_file,
    upload_data_to_s3,
)

MB = 1 << 20
EARLIER = b"earlier content\n"
BIG = hashlib.shake_256(b"fraudnb").digest(MB) * 10  # 10 MB: two parts


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- a network that can be broken


class Wire:
    """A TCP proxy to `target`. It keeps the request lines, and cuts or stalls what the server sends.

    `cut_after` bytes of an answer the connection is cut, the first `cuts` times; after `stall_after` bytes in all,
    nothing more is passed on. `on_request` is called with each request line before it is passed on.
    """

    def __init__(
        self,
        target: str,
        cut_after: int | None = None,
        cuts: int = 1_000_000,
        stall_after: int | None = None,
        on_request: Callable[[str], None] = lambda line: None,
    ) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self.target, self.cut_after, self.cuts, self.stall_after = (host, int(port)), cut_after, cuts, stall_after
        self.on_request, self.requests, self.passed = on_request, [], 0
        self.stalled, self.closing, self.lock = threading.Event(), threading.Event(), threading.Lock()
        self.threads: list[threading.Thread] = []
        self.sockets: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def __enter__(self) -> "Wire":
        self.start(self.accept)
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.hang_up(self.listener, *self.sockets)
        for thread in self.threads:
            thread.join(10)
        for one in [self.listener, *self.sockets]:
            one.close()

    def count(self, method: str) -> int:
        return sum(line.startswith(f"{method} ") for line in self.requests)

    def start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    @staticmethod
    def hang_up(*ends: socket.socket) -> None:
        for end in ends:
            with contextlib.suppress(OSError):  # the other side may have hung up first
                end.shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        while not self.closing.is_set():
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(self.target)
            self.sockets += [client, server]
            self.start(self.pass_requests, client, server)
            self.start(self.pass_answers, server, client)

    def pass_requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(MB):
                for line in data.split(b"\r\n"):
                    if line.endswith(b" HTTP/1.1"):
                        self.requests.append(line.decode())
                        self.on_request(line.decode())
                server.sendall(data)
        self.hang_up(client, server)

    def pass_answers(self, server: socket.socket, client: socket.socket) -> None:
        sent = 0
        with contextlib.suppress(OSError):
            while data := server.recv(MB):
                if self.cut_after is not None and sent + len(data) > self.cut_after:
                    with self.lock:
                        cut, self.cuts = self.cuts > 0, self.cuts - 1
                    if cut:
                        client.sendall(data[: self.cut_after - sent])
                        break
                if self.stall_after is not None and self.passed + len(data) > self.stall_after:
                    self.stalled.set()
                    self.closing.wait(60)
                    break
                client.sendall(data)
                sent, self.passed = sent + len(data), self.passed + len(data)
        self.hang_up(client, server)


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def origin(answer: Answer) -> Iterator[str]:
    """A web server on loopback that answers each GET and HEAD by calling `answer(handler)`; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def reply(handler: http.server.BaseHTTPRequestHandler, body: bytes = b"", status: int = 200, **headers: object) -> None:
    """Send `body`; a header `Content_Length` replaces the true one."""
    handler.send_response(status)
    for name, value in ({"Content_Length": len(body)} | headers).items():
        if value is not None:
            handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    if handler.command != "HEAD":
        with contextlib.suppress(OSError):  # the reader may have gone
            handler.wfile.write(body)


# -- what every failure must fulfil


@pytest.fixture(autouse=True)
def environment(s3_env):
    """Each test has the settings of the test server, and none of the developer's."""
    return s3_env


@pytest.fixture
def dst(tmp_path) -> Path:
    """A target that exists already; nothing else is in its folder."""
    path = tmp_path / "target" / "table.csv"
    path.parent.mkdir()
    path.write_bytes(EARLIER)
    return path


def refused(call: Callable, *args: object) -> str:
    """The message of the `InputError` that `call(*args)` raises: one paragraph, without secrets."""
    with pytest.raises(InputError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message and message.strip() == message and len(message) < 700
    assert "testsecretkey" not in message and "hush" not in message
    return message


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect what s3transfer leaves when it gives up: sockets of parts under way, whose warnings are not ours."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def untouched(dst: Path) -> bool:
    """Whether the earlier file is as it was, and alone in its folder."""
    return dst.read_bytes() == EARLIER and os.listdir(dst.parent) == [dst.name]


def downloaded(dst: Path, content: bytes) -> bool:
    """Whether `dst` and its record are all there is in the folder, and fit `content`."""
    names = {dst.name, memory_path(dst).name}
    record = json.loads(memory_path(dst).read_text())
    return dst.read_bytes() == content and set(os.listdir(dst.parent)) == names and record["sha256"] == sha256(content)


# -- S3: the good cases


def test_round_trip_in_parts(s3, bucket, dst, tmp_path, caplog):
    caplog.set_level(logging.INFO, "fraudnb")
    source = tmp_path / "source.bin"
    source.write_bytes(BIG * 4)
    upload_data_to_s3(source, bucket, "2024/may 1+ü%3F.bin")
    with Wire(s3.endpoint) as wire, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
        got = download_data_from_s3(bucket, "2024/may 1+ü%3F.bin", dst, sha256(BIG * 4).upper())
    assert got == dst and downloaded(dst, BIG * 4)
    assert wire.count("GET") == 5  # 40 MB in parts of 8 MB
    assert s3.secret not in caplog.text


@pytest.mark.parametrize("size", [1, 8 * MB - 1, 8 * MB, 8 * MB + 1])
def test_sizes_around_one_part(bucket, dst, tmp_path, size):
    source = tmp_path / "source.bin"
    source.write_bytes(BIG[:size])
    upload_data_to_s3(source, bucket, "k")
    assert downloaded(download_data_from_s3(bucket, "k", dst), BIG[:size])


def test_new_folder_is_made(s3, bucket, tmp_path):
    s3.put(bucket, "a.csv", b"1")
    assert fetch(f"s3://{bucket}/a.csv", tmp_path / "new" / "folder").read_bytes() == b"1"


def test_process_is_quiet(s3, bucket, tmp_path):
    """No warning, no unclosed socket, no bar where stderr is no terminal."""
    s3.put(bucket, "a.csv", b"1")
    done = run_download(s3.env, bucket, "a.csv", tmp_path / "a.csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_bar_on_a_terminal(s3, bucket, tmp_path):
    s3.put(bucket, "a.csv", BIG[:MB])
    above, below = pty.openpty()
    termios.tcsetwinsize(below, (24, 120))
    try:
        assert run_download(s3.env, bucket, "a.csv", tmp_path / "a.csv", stderr=below).returncode == 0
        shown = os.read(above, 65536).decode()
    finally:
        os.close(above), os.close(below)
    assert f"s3://{bucket}/a.csv" in shown and "100%" in shown and "1.05M" in shown


def run_download(env: dict[str, str], *args: object, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess:
    code = "import sys; from fraudnb.fetch import download_data_from_s3 as get; get(*sys.argv[1:])"
    command = [sys.executable, "-P", "-W", "always", "-c", code, *map(str, args)]
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60)


# -- S3: no second transfer


@pytest.fixture
def wire(s3, monkeypatch) -> Iterator[Wire]:
    """A proxy that only counts, in front of the S3 server."""
    with Wire(s3.endpoint) as wire:
        monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
        yield wire


def test_unchanged_is_not_transferred_again(s3, bucket, dst, wire):
    s3.put(bucket, "a.csv", b"one")
    download_data_from_s3(bucket, "a.csv", dst)
    before = dst.stat()
    assert wire.count("GET") == 1
    download_data_from_s3(bucket, "a.csv", dst)
    download_data_from_s3(bucket, "a.csv", dst, sha256(b"one"))
    assert wire.count("GET") == 1
    assert downloaded(dst, b"one") and dst.stat().st_mtime_ns == before.st_mtime_ns


def test_changed_object_is_transferred_again(s3, bucket, dst, wire):
    for content in [b"one", b"two"]:
        s3.put(bucket, "a.csv", content)
        assert downloaded(download_data_from_s3(bucket, "a.csv", dst), content)
    assert wire.count("GET") == 2


def test_other_key_is_transferred(s3, bucket, dst, wire):
    for key in ["a.csv", "b.csv"]:  # the same content has the same ETag
        s3.put(bucket, key, b"one")
        download_data_from_s3(bucket, key, dst)
    assert wire.count("GET") == 2


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"eno"), lambda path: path.unlink()])
def test_tampered_file_is_transferred_again(s3, bucket, dst, wire, damage):
    s3.put(bucket, "a.csv", b"one")
    download_data_from_s3(bucket, "a.csv", dst)
    damage(dst)
    assert downloaded(download_data_from_s3(bucket, "a.csv", dst), b"one")
    assert wire.count("GET") == 2


def test_corrupt_record_costs_a_transfer(s3, bucket, dst, wire):
    s3.put(bucket, "a.csv", b"one")
    wrong = b'{"etag": 1, "source": [], "size": "x"}'
    records = [None, b"", b'{"etag": ', b"[]", b"7", b"{}", b"\xff\xfe", b"[" * 100_000, wrong]
    download_data_from_s3(bucket, "a.csv", dst)
    for transfers, record in enumerate(records, start=2):
        memory_path(dst).unlink() if record is None else memory_path(dst).write_bytes(record)
        assert downloaded(download_data_from_s3(bucket, "a.csv", dst), b"one")
        assert wire.count("GET") == transfers


# -- S3: what the user gets wrong


def test_missing_key(s3, bucket, dst):
    s3.put(bucket, "2024/transactions.csv", b"1")
    message = refused(download_data_from_s3, bucket, "2024/transaction.csv", dst)
    assert f"s3://{bucket}/2024/transaction.csv does not exist" in message
    assert "Did you mean '2024/transactions.csv'?" in message
    assert "There are '2024/transactions.csv'" in refused(download_data_from_s3, bucket, "2024/x", dst)
    assert "nothing in that folder" in refused(download_data_from_s3, bucket, "2025/x", dst)
    assert untouched(dst)


def test_missing_bucket(dst, tmp_path):
    message = refused(download_data_from_s3, "no-such-bucket", "a.csv", dst)
    assert "The bucket does not exist" in message and "AWS_ENDPOINT_URL" in message
    assert "The bucket does not exist" in refused(upload_data_to_s3, dst, "no-such-bucket", "a.csv")
    assert untouched(dst)


def test_wrong_secret(s3, bucket, dst, monkeypatch):
    s3.put(bucket, "a.csv", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    message = refused(download_data_from_s3, bucket, "a.csv", dst)
    assert "may not be accessed" in message and "AWS_SECRET_ACCESS_KEY" in message and "403" in message
    assert "may not be accessed" in refused(upload_data_to_s3, dst, bucket, "b.csv")
    assert untouched(dst)


def test_no_credentials(bucket, dst, monkeypatch, tmp_path):
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    message = refused(download_data_from_s3, bucket, "a.csv", dst)
    assert "needs credentials" in message and "AWS_ACCESS_KEY_ID" in message and "AWS_PROFILE" in message
    monkeypatch.setenv("AWS_PROFILE", "missing")
    assert "needs credentials" in refused(download_data_from_s3, bucket, "a.csv", dst)
    assert untouched(dst)


def test_endpoint_down(dst, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:hush@127.0.0.1:{port}")
    message = refused(download_data_from_s3, "some-bucket", "a.csv", dst)
    assert "cannot be reached" in message and "AWS_ENDPOINT_URL" in message
    assert "cannot be reached" in refused(upload_data_to_s3, dst, "some-bucket", "a.csv")
    assert untouched(dst)


@pytest.mark.parametrize(
    "name, value", [("AWS_ENDPOINT_URL", "localhost:9000"), ("AWS_MAX_ATTEMPTS", "many"), ("AWS_MAX_ATTEMPTS", "0")]
)
def test_unusable_settings(bucket, dst, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert name in refused(download_data_from_s3, bucket, "a.csv", dst)
    assert untouched(dst)


@pytest.mark.parametrize("name", ["my bucket", "a/b", "bücket", ""])
def test_impossible_bucket_name(dst, name):
    assert "3 to 63 lower-case letters" in refused(download_data_from_s3, name, "a.csv", dst)
    assert untouched(dst)


def test_empty_object(s3, bucket, dst):
    s3.put(bucket, "a.csv", b"")
    assert "is empty" in refused(download_data_from_s3, bucket, "a.csv", dst)
    assert untouched(dst)


def test_checksum_mismatch(s3, bucket, dst):
    s3.put(bucket, "a.csv", b"one")
    message = refused(download_data_from_s3, bucket, "a.csv", dst, sha256(b"two"))
    assert sha256(b"one") in message and sha256(b"two") in message and "another file" in message
    assert untouched(dst)


def test_checksum_mismatch_after_a_download(s3, bucket, dst):
    """A remembered version does not excuse from the checksum."""
    s3.put(bucket, "a.csv", b"one")
    download_data_from_s3(bucket, "a.csv", dst)
    assert "another file" in refused(download_data_from_s3, bucket, "a.csv", dst, sha256(b"two"))
    assert downloaded(dst, b"one")


def test_target_is_a_folder(bucket, dst):
    assert "is a folder" in refused(download_data_from_s3, bucket, "a.csv", dst.parent)
    assert untouched(dst)


def test_target_in_a_file(s3, bucket, dst):
    s3.put(bucket, "a.csv", b"one")
    assert "cannot be read or written" in refused(download_data_from_s3, bucket, "a.csv", dst / "a.csv")
    assert untouched(dst)


def test_upload_of_what_is_no_file(bucket, dst, tmp_path):
    assert "Did you mean 'table.csv'?" in refused(upload_data_to_s3, dst.with_name("tabel.csv"), bucket, "a")
    assert "is a folder" in refused(upload_data_to_s3, tmp_path, bucket, "a")
    (tmp_path / "empty").touch()
    assert "is empty" in refused(upload_data_to_s3, tmp_path / "empty", bucket, "a")


# -- S3: what the network does


def test_cut_and_tried_again(s3, bucket, dst, monkeypatch):
    s3.put(bucket, "a.bin", BIG)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    with Wire(s3.endpoint, cut_after=MB, cuts=2) as wire:
        monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
        download_data_from_s3(bucket, "a.bin", dst, sha256(BIG))
    assert downloaded(dst, BIG) and wire.count("GET") == 4  # both parts twice


@pytest.mark.usefixtures("collected")
def test_cut_for_good(s3, bucket, dst, monkeypatch):
    s3.put(bucket, "a.bin", BIG)
    with Wire(s3.endpoint, cut_after=MB) as wire:
        monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
        message = refused(download_data_from_s3, bucket, "a.bin", dst)
    assert "did not arrive whole" in message and "AWS_MAX_ATTEMPTS" in message
    assert untouched(dst)


@pytest.mark.thorough
@pytest.mark.usefixtures("collected")
def test_upload_cut_for_good_leaves_no_object(s3, bucket, dst, tmp_path, monkeypatch):
    s3.put(bucket, "a.bin", b"old")
    source = tmp_path / "source.bin"
    source.write_bytes(BIG)
    with Wire(s3.endpoint, cut_after=0) as wire:
        monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
        message = refused(upload_data_to_s3, source, bucket, "a.bin")
    assert "did not arrive whole" in message
    assert s3.get(bucket, "a.bin") == b"old"


@pytest.mark.usefixtures("collected")
def test_body_shorter_than_announced(dst, monkeypatch):
    with origin(lambda request: reply(request, b"x" * 600, Content_Length=1000, ETag='"v1"')) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert "did not arrive whole" in refused(download_data_from_s3, "some-bucket", "a.csv", dst)
    assert untouched(dst)


@pytest.mark.usefixtures("collected")
def test_truncated_object(dst, monkeypatch):
    """The answer is complete in itself, but less than what HEAD said."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        if request.command == "HEAD":
            reply(request, Content_Length=1000, ETag='"v1"')
        else:
            reply(request, b"x" * 600, 206, ETag='"v1"', Content_Range="bytes 0-599/1000")

    with origin(answer) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert "truncated: 600 of 1,000 bytes" in refused(download_data_from_s3, "some-bucket", "a.csv", dst)
    assert untouched(dst)


@pytest.mark.parametrize("status, text", [(412, "changed while"), (400, "expired token"), (503, "run again later")])
@pytest.mark.usefixtures("collected")
def test_other_answers_of_s3(dst, monkeypatch, status, text):
    body = b"<Error><Code>%s</Code></Error>" % {412: b"PreconditionFailed"}.get(status, b"Other")

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        if request.command == "HEAD":
            reply(request, Content_Length=1000, ETag='"v1"')
        else:
            reply(request, body, status)

    with origin(answer) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert text in refused(download_data_from_s3, "some-bucket", "a.csv", dst)
    assert untouched(dst)


def test_damaged_object(dst, monkeypatch):
    """As long as announced, but not what S3 has the CRC-32 of."""
    facts = {"Content_Length": 9, "ETag": '"v1"', "x_amz_checksum_crc32": "y/Q5Jg=="}

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        reply(request, b"12345678x", 206, Content_Range="bytes 0-8/9", **facts)

    with origin(answer) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert "arrived damaged" in refused(download_data_from_s3, "some-bucket", "a.csv", dst)
    assert untouched(dst)


def test_checksum_of_the_whole_with_each_part(s3, bucket, dst):
    """The test server sends it, as others do; botocore's own check would refuse the parts."""
    s3.put(bucket, "a.bin", BIG)
    part = s3.client.get_object(Bucket=bucket, Key="a.bin", Range="bytes=0-9", ChecksumMode="ENABLED")
    part["Body"].close()
    assert part["ChecksumCRC32"]
    assert downloaded(download_data_from_s3(bucket, "a.bin", dst), BIG)


def test_object_changes_during_the_transfer(s3, bucket, dst, monkeypatch):
    """The server ignores If-Match, as some do; then the HEAD afterwards must tell."""
    s3.put(bucket, "a.csv", b"one")

    def change(line: str) -> None:
        if line.startswith("HEAD ") and wire.count("GET"):  # the one after the transfer
            s3.put(bucket, "a.csv", b"two")

    with Wire(s3.endpoint, on_request=change) as wire:
        monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
        assert "changed while it was being transferred" in refused(download_data_from_s3, bucket, "a.csv", dst)
    assert untouched(dst)


@pytest.mark.thorough
def test_killed_while_downloading(s3, bucket, dst):
    s3.put(bucket, "a.bin", BIG)
    code = "import sys; from fraudnb.fetch import download_data_from_s3 as get; get(*sys.argv[1:])"
    with Wire(s3.endpoint, stall_after=4 * MB) as wire:
        env = s3.env | {"AWS_ENDPOINT_URL": wire.endpoint}
        process = subprocess.Popen([sys.executable, "-P", "-c", code, bucket, "a.bin", str(dst)], env=env)
        try:
            assert wire.stalled.wait(30)
            left = list(dst.parent.glob(f".{dst.name}.*.tmp"))
            deadline = time.monotonic() + 10
            while not left[0].stat().st_size and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert dst.read_bytes() == EARLIER
    assert len(left) == 1 and left[0].stat().st_size > 0  # it had begun to write
    assert downloaded(download_data_from_s3(bucket, "a.bin", dst), BIG)


# -- the disk


@pytest.mark.thorough
def test_disk_full(s3, bucket, tmp_path):
    """On a file system of 1 MB, in a mount namespace of its own: nothing is left mounted."""
    private = ["unshare", "-m" if os.geteuid() == 0 else "-rm", "sh", "-c"]
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1"'
    disk = tmp_path / "disk"
    disk.mkdir()
    may = subprocess.run([*private, mount, "sh", str(disk)], capture_output=True, text=True)
    assert may.returncode == 0, f"needs unshare (util-linux) and the right to mount a small disk: {may.stderr}"
    s3.put(bucket, "a.bin", BIG)
    with origin(lambda request: reply(request, BIG)) as address:
        inside = f'{mount} && shift && exec "$@"'
        command = [*private, inside, "sh", str(disk), sys.executable, "-P", "-c", ON_FULL_DISK]
        sources = [f"s3://{bucket}/a.bin", f"{address}/a.bin?key=hush"]
        done = subprocess.run([*command, str(disk), *sources], env=s3.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 2
    for message, names, intact in found:
        assert "No space left on the disk" in message and "a.bin" in message and "hush" not in message
        assert names == ["a.bin"] and intact


ON_FULL_DISK = """
import json, os, sys
from pathlib import Path
from fraudnb.fetch import fetch
from fraudnb.schema import InputError

folder, *sources = sys.argv[1:]
earlier, found = Path(folder, "a.bin"), []
earlier.write_bytes(b"earlier" * 10_000)
for source in sources:
    try:
        fetch(source, Path(folder))
    except InputError as error:
        found.append([str(error), os.listdir(folder), earlier.read_bytes() == b"earlier" * 10_000])
print(json.dumps(found))
"""


# -- https (over http on loopback)


def test_url_and_not_again(dst):
    """200, then 304 while the ETag holds, then 200 for the new version."""
    version, seen = ["one"], []

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        etag = f'"{version[0]}"'
        status = 304 if request.headers["If-None-Match"] == etag else 200
        seen.append(status)
        reply(request, version[0].encode() if status == 200 else b"", status, ETag=etag)

    with origin(answer) as address:
        url = f"{address}/a.csv"
        assert downloaded(download_url(url, dst, sha256(b"one")), b"one")
        assert downloaded(download_url(url, dst), b"one")
        version[0] = "two"
        assert downloaded(download_url(url, dst), b"two")
        dst.write_bytes(b"tampered")
        assert downloaded(download_url(url, dst), b"two")
        memory_path(dst).write_text("{")
        assert downloaded(download_url(url, dst), b"two")
        assert downloaded(download_url(f"{url}?n=2", dst), b"two")  # another address: its own ETag
    assert seen == [200, 304, 200, 200, 200, 200]


def test_url_without_etag_is_transferred_again(dst):
    seen = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(request.headers["If-None-Match"])
        reply(request, b"one")

    with origin(answer) as address:
        for _ in range(2):
            assert downloaded(download_url(f"{address}/a.csv", dst), b"one")
    assert seen == [None, None]


def test_url_without_length(dst):
    with origin(lambda request: reply(request, BIG, Content_Length=None)) as address:
        assert downloaded(download_url(f"{address}/a.csv", dst), BIG)


@pytest.mark.parametrize(
    "status, text",
    [
        (404, "does not exist"),
        (410, "any more"),
        (401, "needs a login"),
        (403, "expired"),
        (418, "could not be fetched"),
    ],
)
def test_url_refused(dst, status, text):
    with origin(lambda request: reply(request, b"no", status)) as address:
        message = refused(download_url, f"{address}/a.csv?key=hush", dst)
    assert text in message and f"{address}/a.csv " in message and str(status) in message
    assert untouched(dst)


def test_url_unasked_304(dst):
    with origin(lambda request: reply(request, b"", 304)) as address:
        assert "304" in refused(download_url, f"{address}/a.csv", dst)
    assert untouched(dst)


def test_url_busy_and_tried_again(dst):
    statuses = [503, 200]
    with origin(lambda request: reply(request, b"one", statuses.pop(0))) as address:
        assert downloaded(download_url(f"{address}/a.csv", dst), b"one")


@pytest.mark.thorough
def test_url_busy_for_good(dst, caplog):
    caplog.set_level(logging.DEBUG, "fraudnb")
    with origin(lambda request: reply(request, b"", 503)) as address:
        message = refused(download_url, f"{address}/a.csv?key=hush", dst)
    assert "answered 503" in message and "Run again later" in message
    assert "attempt 1 of 2 failed" in caplog.text and "hush" not in caplog.text
    assert untouched(dst)


def test_url_cut_and_tried_again(dst):
    with origin(lambda request: reply(request, BIG)) as address, Wire(address, cut_after=MB, cuts=1) as wire:
        download_url(f"{wire.endpoint}/a.csv", dst, sha256(BIG))
    assert downloaded(dst, BIG) and wire.count("GET") == 2


@pytest.mark.thorough
def test_url_cut_for_good(dst, monkeypatch):
    with origin(lambda request: reply(request, BIG)) as address, Wire(address, cut_after=MB) as wire:
        message = refused(download_url, f"{wire.endpoint}/a.csv?key=hush", dst)
    assert "did not arrive whole" in message and wire.count("GET") == 2
    assert untouched(dst)


def test_url_truncated(dst):
    with origin(lambda request: reply(request, b"x" * 600, Content_Length=1000)) as address:
        assert "did not arrive whole" in refused(download_url, f"{address}/a.csv", dst)
    assert untouched(dst)


def test_url_empty(dst):
    with origin(lambda request: reply(request, b"")) as address:
        assert "is empty" in refused(download_url, f"{address}/a.csv", dst)
    assert untouched(dst)


def test_url_checksum_mismatch(dst):
    with origin(lambda request: reply(request, b"one", ETag='"v1"')) as address:
        assert "another file" in refused(download_url, f"{address}/a.csv?key=hush", dst, sha256(b"two"))
    assert untouched(dst)


def test_url_down(dst, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert "cannot be reached" in refused(download_url, f"http://127.0.0.1:{port}/a.csv?key=hush", dst)
    assert untouched(dst)


def test_url_that_speaks_no_tls(dst):
    with origin(lambda request: reply(request, b"one")) as address:
        message = refused(download_url, f"{address.replace('http:', 'https:')}/a.csv?key=hush", dst)
    assert "certificate or TLS was refused" in message
    assert untouched(dst)


def test_url_redirected(dst):
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        if request.path.startswith("/from"):
            reply(request, b"", 302, Location="/to.csv?key=hush")
        else:
            reply(request, b"one", ETag='"v1"')

    with origin(answer) as address:
        download_url(f"{address}/from", dst)
    assert downloaded(dst, b"one") and "hush" not in memory_path(dst).read_text()


@pytest.mark.parametrize(
    "location, text",
    [
        ("http://192.0.2.1/a.csv?key=hush", "http://192.0.2.1/a.csv' is not fetched"),
        ("/again", "redirected more than 10"),
    ],
)
def test_url_redirected_wrongly(dst, location, text):
    with origin(lambda request: reply(request, b"", 302, Location=location)) as address:
        assert text in refused(download_url, f"{address}/a.csv?key=hush", dst)
    assert untouched(dst)


@pytest.mark.parametrize("url", ["http://example.org/a.csv?key=hush", "http://user:hush@192.0.2.1/a.csv"])
def test_plain_http_elsewhere(dst, url):
    assert "only https://" in refused(download_url, url, dst)
    assert untouched(dst)


# -- one door


def test_fetch_from_each_place(s3, bucket, dst):
    s3.put(bucket, "2024/a.csv", b"one")
    assert fetch(f"s3://{bucket}/2024/a.csv", dst.parent / "s3") == dst.parent / "s3" / "a.csv"
    with origin(lambda request: reply(request, b"two")) as address:
        got = fetch(f"{address}/2024/b.csv?key=hush", dst.parent / "web", sha256(b"two"))
    assert got == dst.parent / "web" / "b.csv" and got.read_bytes() == b"two"
    assert fetch(str(dst), dst.parent, sha256(EARLIER)) == dst


def test_fetch_of_a_wrong_file(dst, tmp_path):
    assert "Did you mean 'table.csv'?" in refused(fetch, str(dst.with_name("tabel.csv")), tmp_path)
    assert "There is no folder" in refused(fetch, str(tmp_path / "none" / "a.csv"), tmp_path)
    assert "is a folder" in refused(fetch, str(tmp_path), tmp_path)
    assert "is no known kind" not in refused(fetch, str(tmp_path), tmp_path)
    assert "another file" in refused(fetch, str(dst), tmp_path, sha256(b""))
    assert "64 hexadecimal digits" in refused(fetch, str(dst), tmp_path, "abc")
    (tmp_path / "empty").touch()
    assert "is empty" in refused(fetch, str(tmp_path / "empty"), tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(fetch, str(tmp_path / "pipe"), tmp_path)
    assert untouched(dst)


@pytest.mark.parametrize(
    "source",
    ["", "ftp://user:hush@host/a.csv", "gs://bank/a.csv?key=hush", "s3://bank", "s3://", "https://", "http://["],
)
def test_fetch_of_an_unknown_kind(tmp_path, source):
    refused(fetch, source, tmp_path)
    assert os.listdir(tmp_path) == []


# -- one call for the disk and for S3


@pytest.fixture(params=["disk", "s3"])
def place(request, bucket, tmp_path) -> str:
    """A folder or a prefix with a space in its name; nothing is there yet."""
    return str(tmp_path / "below here") if request.param == "disk" else f"s3://{bucket}/below here"


def test_files_come_back_as_they_were_stored(place, tmp_path):
    assert list_files(place) == [] and not exists(join_location(place, "a.csv"))
    (tmp_path / "big.bin").write_bytes(BIG)
    store_file(tmp_path / "big.bin", join_location(place, "day=2/ü%3F.bin"))
    store_bytes(b"1", join_location(place, "a.csv"))
    store_bytes(b"hidden", join_location(place, ".a.csv.etag.json"))
    store_bytes(b"besides", f"{place}-old/a.csv")
    assert list_files(place) == list_files(f"{place}/") == ["a.csv", "day=2/ü%3F.bin"]
    assert read_bytes(join_location(place, "day=2/ü%3F.bin")) == BIG
    assert read_bytes(join_location(place, "day=2/ü%3F.bin"), last=9) == BIG[-9:]
    assert read_bytes(join_location(place, "a.csv"), last=9) == b"1"


def test_version_tells_a_change(place):
    there = join_location(place, "a.csv")
    store_bytes(b"one", there)
    first = file_version(there)
    assert first == file_version(there) and exists(there)
    store_bytes(b"two", there)
    assert first != file_version(there) != "" and read_bytes(there) == b"two"
    assert file_version(join_location(place, "b.csv")) == ""


@pytest.mark.thorough
def test_more_keys_than_one_answer_holds(s3, bucket):
    """S3 lists at most 1,000 keys at a time."""
    (s3.folder / bucket / "many").mkdir()
    for number in range(1003):
        (s3.folder / bucket / "many" / f"{number:04}.csv").write_text("1")
    assert list_files(f"s3://{bucket}/many") == [f"{number:04}.csv" for number in range(1003)]


def test_missing_files_are_named(place):
    store_bytes(b"1", join_location(place, "may.csv"))
    assert "Did you mean" in refused(read_bytes, join_location(place, "mai.csv"))
    store_bytes(b"", join_location(place, "empty.csv"))
    assert "is empty" in refused(read_bytes, join_location(place, "empty.csv"))


LOCATION_CALLS = {
    "list": lambda location: list_files(location.rpartition("/")[0]),
    "version": file_version,
    "read": read_bytes,
    "store": lambda location: store_bytes(b"1", location),
    "store file": lambda location: store_file(__file__, location),
}


@pytest.mark.parametrize("call", LOCATION_CALLS.values(), ids=LOCATION_CALLS)
def test_location_on_s3_that_cannot_be_used(bucket, monkeypatch, tmp_path, call):
    """No bucket, no right, no server, no credentials: what to do, from each function."""
    if call is file_version:
        assert file_version("s3://no-such-bucket/a.csv") == ""
    else:
        assert "does not exist" in refused(call, "s3://no-such-bucket/a.csv")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
        assert "may not be accessed" in refused(call, f"s3://{bucket}/a.csv")
    with monkeypatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as deaf:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        deaf.close()
        assert "cannot be reached" in refused(call, f"s3://{bucket}/a.csv")
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "needs credentials" in refused(call, f"s3://{bucket}/a.csv")


@pytest.mark.usefixtures("collected")
def test_read_is_tried_again_when_cut(s3, bucket, monkeypatch):
    s3.put(bucket, "a.bin", BIG)
    for attempts, cuts in ((3, 2), (3, 3)):
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", str(attempts))
        with Wire(s3.endpoint, cut_after=MB, cuts=cuts) as wire:
            monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
            if cuts < attempts:
                assert read_bytes(f"s3://{bucket}/a.bin", last=2 * MB) == BIG[-2 * MB :]
            else:
                assert "did not arrive whole" in refused(read_bytes, f"s3://{bucket}/a.bin")
