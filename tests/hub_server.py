"""A local HTTP server with the endpoints of the Hugging Face Hub that a download uses."""

import contextlib
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def serve(repositories, sizes=None):
    """Serve {"owner/name": {file: bytes}}; yield (URL, list of the requests as "METHOD path").

    Args:
      repositories: content of the repositories, at the branch main and the commit COMMIT.
      sizes: {file: size} that the server claims instead of the file's own.
    """
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer(with_body=False)

        def do_GET(self):
            self._answer(with_body=True)

        def _answer(self, with_body):
            requests.append(f"{self.command} {self.path}")
            owner, name, verb, revision, *file = [*self.path.split("?")[0].strip("/").split("/"), "", "", "", ""]
            files = repositories.get(f"{owner}/{name}")
            if files is None or verb != "resolve" or revision not in ("main", COMMIT):
                return self._fail("RepoNotFound")
            content = files.get("/".join(file).strip("/"))
            if content is None:
                return self._fail("EntryNotFound")
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str((sizes or {}).get("/".join(file).strip("/"), len(content))))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def _fail(self, code):
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
