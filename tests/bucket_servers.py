"""Local S3 servers: moto's, and one that denies requests."""

import contextlib
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@contextlib.contextmanager
def refusing(may_put=lambda path: False):
    """Run a server that denies all requests except PUT to some paths; yield its URL and the uploaded paths."""
    put = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # answers "Expect: 100-continue"

        def _answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_right = self.command == "PUT" and may_put(self.path)
            put.extend([self.path] * is_right)
            body = b"" if is_right else b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(200 if is_right else 403)
            self.send_header("ETag", '"x"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", put
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def s3_server():
    """Run a server with the bucket "street"; yield its URL."""
    server = pytest.importorskip("moto.server", reason="pip install s3fs 'moto[server]' runs this test")
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        url = f"http://{host}:{port}"
        urllib.request.urlopen(f"{url}/moto-api/reset", b"").close()  # its content belongs to the process
        yield url
    finally:
        running.stop()


def set_server(monkeypatch, url):
    """Use a server as the S3 endpoint, with credentials that no message may contain."""
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "AKIAHIDDEN",
        "AWS_SECRET_ACCESS_KEY": "verysecret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    pytest.importorskip(
        "s3fs", reason="pip install s3fs 'moto[server]' runs this test"
    ).S3FileSystem.clear_instance_cache()


def client(url):
    """Return S3's own client, with a new bucket "street"."""
    boto3 = pytest.importorskip("boto3", reason="pip install s3fs 'moto[server]' runs this test")
    made = boto3.client("s3", endpoint_url=url)
    made.create_bucket(Bucket="street")
    return made
