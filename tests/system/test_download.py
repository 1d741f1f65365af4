"""Test downloads from a local server that fails like real ones."""

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from segnet_jax.system import download
from segnet_jax.system.download import Resource, fetch
from segnet_jax.system.errors import UserError


def zipped(size=300_000):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.bin", bytes(range(256)) * (size // 256))
    return archive.getvalue()


CONTENT = zipped()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><html><body>Sorry, this file has moved.</body></html>"


class Server:
    """A server of `files` by path that logs requests and can break connections or ignore ranges."""

    def __init__(self):
        self.files = {"/f.zip": CONTENT}
        self.requests = []  # (path, Range header)
        self.ranges = True
        self.break_after = []  # bytes after which the next responses end, one entry per response
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                requested = self.headers.get("Range")
                server.requests.append((self.path, requested))
                content = server.files.get(self.path)
                if content is None:
                    return self.send_error(404)
                if isinstance(content, str):
                    self.send_response(302)
                    self.send_header("Location", content)
                    return self.end_headers()
                start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested and server.ranges else 0
                if start and start >= len(content):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                end = start + server.break_after.pop(0) if server.break_after else len(content)
                self.wfile.write(content[start:end])

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def url(self, path="/f.zip"):
        return f"http://127.0.0.1:{self.http.server_port}{path}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def resource(*urls, **known):
    return Resource("f.zip", urls, "zip", **({"sha256": SHA256} | known))


def refused(what, folder, **arguments):
    with pytest.raises(UserError) as caught:
        fetch(what, folder, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_downloaded_once_into_a_new_folder(server, tmp_path):
    folder = tmp_path / "new" / "folder"
    what = resource(server.url(), num_bytes=len(CONTENT), md5=hashlib.md5(CONTENT).hexdigest())
    assert fetch(what, folder) == folder / "f.zip"
    assert fetch(what, folder).read_bytes() == CONTENT
    assert server.requests == [("/f.zip", None)]
    assert names(folder) == ["f.zip"]


def test_a_partial_file_is_resumed_where_it_ends(server, tmp_path):
    (tmp_path / "f.zip.part").write_bytes(CONTENT[:1000])
    assert fetch(resource(server.url()), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/f.zip", "bytes=1000-")]


def test_a_server_without_ranges_sends_it_from_the_start(server, tmp_path):
    server.ranges = False
    (tmp_path / "f.zip.part").write_bytes(CONTENT[:1000])
    assert fetch(resource(server.url()), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/f.zip", "bytes=1000-")]


def test_a_part_of_another_file_is_detected_by_the_checksum_and_downloaded_again(server, tmp_path):
    (tmp_path / "f.zip.part").write_bytes(CONTENT[:4] + bytes(996))
    assert fetch(resource(server.url()), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/f.zip", "bytes=1000-"), ("/f.zip", None)]


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_part_that_is_complete_or_too_long_is_handled(server, extra, tmp_path):
    (tmp_path / "f.zip.part").write_bytes(CONTENT + extra)
    assert fetch(resource(server.url()), tmp_path).read_bytes() == CONTENT


def test_a_broken_connection_is_resumed(server, tmp_path):
    server.break_after = [100_000, 50_000]
    assert fetch(resource(server.url()), tmp_path).read_bytes() == CONTENT
    assert [requested for _, requested in server.requests] == [None, "bytes=100000-", "bytes=150000-"]


def test_after_an_attempt_without_data_the_part_is_kept_for_the_next_call(server, tmp_path):
    server.break_after = [100_000, 0]
    assert f"ended after 100000 of {len(CONTENT)} bytes" in refused(resource(server.url()), tmp_path)
    assert names(tmp_path) == ["f.zip.part"]
    assert fetch(resource(server.url()), tmp_path).read_bytes() == CONTENT


def test_the_next_mirror_is_taken_when_one_fails(server, tmp_path):
    server.files |= {"/page": PAGE, "/other": zipped(1000)}
    urls = ["http://127.0.0.1:1/f.zip", server.url("/absent"), server.url("/page"), server.url("/other"), server.url()]
    assert fetch(resource(*urls), tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["f.zip"]


def test_a_web_page_is_recognized_and_leaves_nothing(server, tmp_path):
    server.files["/f.zip"] = PAGE
    assert "the server sent a web page, not a zip" in refused(resource(server.url()), tmp_path)
    assert "the server sent a web page, not a zip" in refused(resource(server.url(), sha256=None), tmp_path)
    assert names(tmp_path) == []


def test_a_wrong_checksum_size_or_kind_is_refused_with_the_actual_one(server, tmp_path):
    url = server.url()
    assert SHA256 in refused(resource(url, sha256="0" * 64), tmp_path)
    assert f"md5 {hashlib.md5(CONTENT).hexdigest()}, expected 0" in refused(resource(url, md5="0" * 32), tmp_path)
    assert "sha1 " in refused(resource(url, sha1="0" * 40), tmp_path)
    assert "more than the 1000 bytes" in refused(resource(url, num_bytes=1000), tmp_path)
    assert f"{len(CONTENT)} bytes, expected 1000000 to 2000000" in refused(
        resource(url, num_bytes=(1_000_000, 2_000_000)), tmp_path
    )
    server.files["/f.zip"] = b"Rar!" + CONTENT
    assert "this is not a zip" in refused(resource(url), tmp_path)
    assert names(tmp_path) == []


def test_without_a_server_the_error_names_the_file_the_urls_and_the_fix(tmp_path):
    urls = ("http://127.0.0.1:1/a/f.zip", "ftp://127.0.0.1/f.zip")
    message = refused(resource(*urls), tmp_path)
    assert all(part in message for part in ("f.zip", *urls, "by hand", str(tmp_path / "f.zip")))
    assert "pass it: --archives DIR" in refused(resource(*urls, hint="pass it: --archives DIR"), tmp_path)
    assert "do this" in refused(resource(*urls, hint="pass it"), tmp_path, hint="do this")


def test_a_server_that_never_answers_times_out(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.1)
    waiting = threading.Event()
    server.http.process_request = lambda *arguments: waiting.wait(5)
    message = refused(resource(server.url()), tmp_path)
    waiting.set()
    assert "no answer within" in message


def test_a_wrong_existing_file_is_an_error_and_not_touched(server, tmp_path):
    (tmp_path / "f.zip").write_bytes(PAGE)
    message = refused(resource(server.url()), tmp_path)
    assert f"{tmp_path / 'f.zip'}: the server sent a web page" in message and "move it away" in message
    assert (tmp_path / "f.zip").read_bytes() == PAGE and server.requests == []


def test_without_a_known_checksum_the_first_file_is_trusted_and_later_ones_must_match_it(server, tmp_path, capsys):
    unknown = resource(server.url(), sha256=None)
    path = fetch(unknown, tmp_path)
    assert SHA256 in capsys.readouterr().err
    assert (tmp_path / "f.zip.sha256").read_text() == f"{SHA256}  f.zip\n"
    assert fetch(unknown, tmp_path) == path
    path.unlink()
    server.files["/f.zip"] = zipped(5120)
    message = refused(unknown, tmp_path)
    assert f"the first download had {SHA256}" in message and "delete" in message
    assert names(tmp_path) == ["f.zip.sha256"]


def test_without_a_known_checksum_a_damaged_zip_is_detected_by_its_own_checksums(server, tmp_path):
    damaged = bytearray(CONTENT)
    damaged[5000] ^= 1
    for content in (bytes(damaged), CONTENT[:-30]):
        server.files["/f.zip"] = content
        assert "a damaged zip" in refused(resource(server.url(), sha256=None), tmp_path)
        assert names(tmp_path) == []


def test_a_file_put_there_by_hand_is_checked_and_its_checksum_is_stored(tmp_path):
    (tmp_path / "f.zip").write_bytes(CONTENT)
    assert fetch(resource(sha256=None), tmp_path) == tmp_path / "f.zip"
    assert (tmp_path / "f.zip.sha256").is_file()


def test_file_urls_and_redirects_are_followed(server, tmp_path):
    (tmp_path / "there.zip").write_bytes(CONTENT)
    assert fetch(resource((tmp_path / "there.zip").as_uri()), tmp_path / "a").read_bytes() == CONTENT
    server.files["/moved"] = "/f.zip"
    assert fetch(resource(server.url("/moved")), tmp_path / "b").read_bytes() == CONTENT
    server.files["/away"] = (tmp_path / "there.zip").as_uri()
    assert "redirect" in refused(resource(server.url("/away")), tmp_path / "c").lower()


def test_concurrent_downloads_do_not_interfere(server, tmp_path):
    results = []
    what = resource(server.url())
    threads = [threading.Thread(target=lambda: results.append(fetch(what, tmp_path).read_bytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 3
    assert len(server.requests) == 1


def test_a_full_disk_and_a_folder_that_cannot_be_created_are_errors(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    assert "cannot create the folder" in refused(resource(server.url()), tmp_path / "file" / "folder")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert "has 1000 free" in refused(resource(server.url()), tmp_path)


def test_the_progress_bar_is_shown_on_request(server, tmp_path, capsys):
    fetch(resource(server.url()), tmp_path, show_progress=True)
    assert server.url() in capsys.readouterr().err
