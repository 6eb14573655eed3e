"""A fake Hugging Face hub: a web server on this machine that answers as the hub does, and fails when told to.

It states checksums, redirects large files and serves ranges as the hub does. It has files and nothing else: no log-in,
no search, no other pages.
"""

import contextlib
import hashlib
import http.server
import threading
import time


class Hub(http.server.HTTPServer):
    """Serves `files` by path, each with git's SHA-1 of it as its ETag.

    `large` files are elsewhere, under another name of this machine: the hub states their SHA-256 and redirects.
    `etags` replaces what is stated for a path; None states nothing. `cuts` are the bytes after which the next answers
    break off. With `resumes` False, a request for the rest of a file is answered with all of it. With `states_sizes`
    False, nothing says how long an answer is. `linked_size` replaces the
    size that is stated of a large file. `pause` is how long the server waits after each byte.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.large, self.etags, self.cuts, self.resumes = {}, set(), {}, [], True
        self.states_sizes, self.linked_size, self.pause = True, None, 0
        self.asked = []  # the path of every request, and the range that it asked for
        self.address = f"http://127.0.0.1:{self.server_port}"

    @contextlib.contextmanager
    def running(self):
        with self:
            thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield self
            finally:
                self.shutdown()
                thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        path = self.path.removeprefix("/elsewhere")
        content = self.server.files.get(path)
        if content is None:
            self.send_error(404)
        elif path in self.server.large and path == self.path:
            stated = {"X-Linked-ETag": self.server.etags.get(path, f'"{hashlib.sha256(content).hexdigest()}"')}
            stated["X-Linked-Size"] = str(self.server.linked_size or len(content))
            self.answer(302, stated | {"Location": f"http://localhost:{self.server.server_port}/elsewhere{path}"})
        elif path == self.path:
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self.answer(200, {"ETag": self.server.etags.get(path, f'W/"{digest}"')}, content)
        else:  # the other server's ETag has nothing to do with the content
            self.answer(200, {"ETag": self.server.etags.get(self.path, f'"{"0" * 64}"')}, content)

    def answer(self, status, headers, content=b""):
        asked = self.headers.get("Range")
        if asked and content and self.server.resumes:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status, content = 206, content[start:]
        self.send_response(status)
        length = str(len(content)) if self.server.states_sizes else None
        for name, value in ({"Content-Length": length} | headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        content = content[: self.server.cuts.pop(0)] if self.server.cuts and content else content
        with contextlib.suppress(ConnectionError):  # the client may have had enough
            if not self.server.pause:
                self.wfile.write(content)
            for i in range(len(content) if self.server.pause else 0):
                self.wfile.write(content[i : i + 1])
                time.sleep(self.server.pause)

    def log_message(self, *args):
        pass
