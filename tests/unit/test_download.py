"""Downloads against a local server that knows ranges, breaks off and refuses; unpacking against hostile archives."""

import hashlib
import http.server
import io
import os
import tarfile
import threading
import time

import numpy as np
import pytest

from uqbench.data import download
from uqbench.data.download import USER_AGENT, cache_folder, fetch, unpack
from uqbench.errors import DataError

CONTENT = np.random.default_rng(0).bytes(400_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT. `breaks`: after how many bytes each of the next answers breaks off; `status`: refuse with it."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks, self.status, self.ranges, self.delay = [], None, True, 0.0
        self.requests = []  # (Range, User-Agent, bytes sent)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/files/1"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        time.sleep(server.delay)
        if server.status is not None:
            server.requests.append((asked, self.headers["User-Agent"], 0))
            self.send_response(server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        body = CONTENT[start:]
        if start >= len(CONTENT):
            self.send_response(416)
            body = b""
        elif start:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = body[: server.breaks.pop(0)] if server.breaks else body
        server.requests.append((asked, self.headers["User-Agent"], len(sent)))
        self.wfile.write(sent)
        self.close_connection = True


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """No waiting between attempts, and no proxy between the test and its own server."""
    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_download_is_checked_and_done_once(server, tmp_path):
    target = tmp_path / "new" / "a.tar"
    assert fetch(server.url, MD5, target, "advice") == target
    assert target.read_bytes() == CONTENT
    assert server.requests == [(None, USER_AGENT, len(CONTENT))] and USER_AGENT.startswith("Mozilla/5.0")
    fetch(server.url, MD5, target, "advice")
    assert len(server.requests) == 1
    assert not (target.parent / "a.tar.part").exists()


def test_a_broken_transfer_goes_on_where_it_ended(server, tmp_path):
    server.breaks = [150_000, 100_000]
    fetch(server.url, MD5, tmp_path / "a.tar", "advice")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    starts = [0 if asked is None else int(asked[6:-1]) for asked, _, _ in server.requests]
    # What the server sent and what arrived differ by less than the chunk that the break cut off.
    assert len(starts) == 3 and 150_000 - starts[1] < download.CHUNK
    assert 100_000 - (starts[2] - starts[1]) < download.CHUNK


def test_an_interrupted_program_goes_on_in_the_next(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:300_000])
    fetch(server.url, MD5, tmp_path / "a.tar", "advice")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.requests == [("bytes=300000-", USER_AGENT, 100_000)]


def test_a_part_that_is_already_whole_needs_no_byte(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(CONTENT)
    fetch(server.url, MD5, tmp_path / "a.tar", "advice")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:300_000])
    fetch(server.url, MD5, tmp_path / "a.tar", "advice")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_giving_up_keeps_the_part_and_says_so(server, tmp_path):
    server.breaks = [80_000] + [0] * 9
    with pytest.raises(
        DataError, match=r"cannot download .*bytes are kept in .*a.tar.part, run again to go on; advice"
    ):
        fetch(server.url, MD5, tmp_path / "a.tar", "advice")
    assert 0 < (tmp_path / "a.tar.part").stat().st_size <= 80_000
    server.breaks = []
    fetch(server.url, MD5, tmp_path / "a.tar", "advice")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_wrong_content_is_removed_and_the_next_attempt_is_clean(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match=f"has not the md5 {MD5} and was removed; advice") as caught:
        fetch(server.url, MD5, tmp_path / "a.tar", "advice")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.lock"]
    fetch(server.url, MD5, tmp_path / "a.tar", "advice")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [202, 403, 404, 500])
def test_refusals_are_reported(server, tmp_path, status):
    server.status = status
    with pytest.raises(DataError, match=f"the server answered {status} .*; advice"):
        fetch(server.url, MD5, tmp_path / "a.tar", "advice")
    assert len(server.requests) == 1


def test_no_network_is_one_line_at_once(server, tmp_path):
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"cannot download .* \(no connection to 127.0.0.1\); put it there") as caught:
        fetch(url, MD5, tmp_path / "a.tar", "put it there")
    assert "\n" not in str(caught.value)


def test_a_second_process_waits_for_the_first(server, tmp_path):
    server.delay = 0.2
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch(server.url, MD5, tmp_path / "a.tar", "advice")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and len(server.requests) == 1
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write .*UQBENCH_CACHE"):
        fetch(server.url, MD5, tmp_path / "file" / "a.tar", "advice")


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(str(tmp_path / "mine")) == tmp_path / "mine"
    assert cache_folder(None).name == "uqbench"


# ---------------------------------------------------------------------------------------------------- unpacking


def make_tar(path, members, mode="w:bz2"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                tar.addfile(info)
    return path


def test_only_the_named_files_are_unpacked(tmp_path):
    archive = make_tar(
        tmp_path / "a.tar.bz2", [("./r/a", b"A"), ("r/b", b"B"), ("../up", b"U"), ("r/s/c", b"C" * 9999)]
    )
    unpack(archive, {"r/a", "r/s/c"}, tmp_path / "out")
    assert (tmp_path / "out/r/a").read_bytes() == b"A" and (tmp_path / "out/r/s/c").read_bytes() == b"C" * 9999
    assert sorted(os.listdir(tmp_path / "out/r")) == ["a", "s"] and not (tmp_path / "up").exists()


def test_what_is_there_is_kept(tmp_path):
    archive = make_tar(tmp_path / "a.tar.bz2", [("r/a", b"new"), ("r/b", b"B")])
    (tmp_path / "out/r").mkdir(parents=True)
    (tmp_path / "out/r/a").write_bytes(b"old")
    unpack(archive, {"r/a", "r/b"}, tmp_path / "out")
    assert (tmp_path / "out/r/a").read_bytes() == b"old" and (tmp_path / "out/r/b").read_bytes() == b"B"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_not_followed(tmp_path, kind):
    (tmp_path / "secret").write_text("secret")
    archive = make_tar(tmp_path / "a.tar.bz2", [("r/a", (kind, str(tmp_path / "secret")))])
    with pytest.raises(DataError, match="has no r/a; is it the right archive"):
        unpack(archive, {"r/a"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_lead_nothing_out_of_the_folder(tmp_path):
    """A link under the name of a folder, and a file below it."""
    (tmp_path / "elsewhere").mkdir()
    link = ("r", (tarfile.SYMTYPE, str(tmp_path / "elsewhere")))
    archive = make_tar(tmp_path / "a.tar.bz2", [link, ("r/a", b"A"), ("r/ab", b"B")])
    unpack(archive, {"r/a"}, tmp_path / "out")
    assert (tmp_path / "out/r/a").read_bytes() == b"A" and os.listdir(tmp_path / "out/r") == ["a"]
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("keep", [0, 10, 5000, 15_000])
def test_damaged_archives(tmp_path, keep):
    archive = make_tar(tmp_path / "a.tar.bz2", [("r/a", CONTENT[:20_000]), ("r/b", b"B")])
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(DataError, match="a.tar.bz2 cannot be unpacked .* fetch it again"):
        unpack(archive, {"r/a", "r/b"}, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*a*"))
