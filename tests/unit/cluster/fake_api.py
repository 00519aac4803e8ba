"""An API server for tests: lists in pages, watches with bookmarks, 410, TLS and tokens."""

import contextlib
import gzip
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

DATA = Path(__file__).parents[2] / "data"
KUBERNETES, TLS = DATA / "kubernetes", DATA / "tls"
KINDS = ("pods", "services", "endpointslices", "networkpolicies", "namespaces", "replicasets",
         "jobs")  # fmt: skip
TOKEN = "secret-token"  # noqa: S105 - of the fake
COMPRESSED_BYTES = 4096
"""A list that is longer is compressed, as a real server does from 128 KiB on."""
GONE = {
    "kind": "Status",
    "apiVersion": "v1",
    "metadata": {},
    "status": "Failure",
    "message": "too old resource version: 1 (724)",
    "reason": "Expired",
    "code": 410,
}


def recorded(kind):
    """Objects of a recorded list."""
    path = KUBERNETES / f"{kind}.json"
    return json.loads(path.read_text())["items"] if path.exists() else []


class FakeApi:
    """Serves `objects`, changed by `event`; `status` of a kind makes it refuse."""

    def __init__(self, *, page=500, tls=False, port=0):
        self.objects = {kind: {self._key(item): item for item in recorded(kind)} for kind in KINDS}
        self.version, self.oldest = 1000, 0
        self.page, self.status, self.expire = page, {}, set()
        self.events = {kind: [] for kind in KINDS}
        self.requests = []
        self.changed = threading.Condition()
        self.closing = False
        self._sockets = set()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                fake._sockets.add(self.connection)

            def do_GET(self):
                # A client that goes away in the middle is what some of the tests are about.
                with contextlib.suppress(OSError):
                    fake.serve(self)

            def log_message(self, *_args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        scheme = "http"
        if tls:
            scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Die: nobody listens any more, and connections break."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self.server.shutdown()
        self.server.server_close()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(2)
        self._thread.join(2)

    @staticmethod
    def _key(item):
        return item["metadata"].get("namespace", ""), item["metadata"]["name"]

    def event(self, kind, what, item):
        """Something happens to an object."""
        with self.changed:
            self.version += 1
            item = json.loads(json.dumps(item))
            item["metadata"]["resourceVersion"] = str(self.version)
            if what == "DELETED":
                self.objects[kind].pop(self._key(item), None)
            elif what != "BOOKMARK":
                self.objects[kind][self._key(item)] = item
            self.events[kind].append((self.version, {"type": what, "object": item}))
            self.changed.notify_all()

    def bookmark(self, kind):
        """The version moves on without a change that concerns this kind."""
        self.event(kind, "BOOKMARK", {"metadata": {}})

    def compact(self):
        """Forget history: who asks for it is told 410; running watches end with that, too."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            for kind in KINDS:
                self.events[kind].clear()
            self.expire = set(KINDS)
            self.changed.notify_all()

    def watches(self, kind):
        """Versions that watches of this kind asked for, in order."""
        return [query["resourceVersion"] for k, query in self.requests if k == kind
                and "watch" in query]  # fmt: skip

    def lists(self, kind):
        """How many lists were begun."""
        return sum(k == kind and not query.keys() & {"watch", "continue"}
                   for k, query in self.requests)  # fmt: skip

    def serve(self, handler):
        """Answer one request."""
        url = urlsplit(handler.path)
        kind = url.path.rpartition("/")[2]
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.requests.append((kind, query))
        if handler.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._plain(handler, 401, {"message": "Unauthorized"})
        if kind in self.status:
            return self._plain(handler, self.status[kind], {"message": f"no {kind} for you"})
        if "watch" in query:
            return self._watch(handler, kind, int(query["resourceVersion"]))
        return self._list(handler, kind, query)

    def _list(self, handler, kind, query):
        with self.changed:
            items = [item for _, item in sorted(self.objects[kind].items())]
            version = self.version
        begin = int(query.get("continue", 0))
        end = begin + min(self.page, int(query["limit"]))
        metadata = {"resourceVersion": str(version)}
        if end < len(items):
            metadata["continue"] = str(end)
        self._plain(handler, 200, {"metadata": metadata, "items": items[begin:end]})

    def _plain(self, handler, status, value):
        body = json.dumps(value).encode()
        handler.send_response(status)
        if len(body) > COMPRESSED_BYTES and "gzip" in handler.headers["Accept-Encoding"]:
            body = gzip.compress(body, 1)
            handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _watch(self, handler, kind, seen):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        if seen < self.oldest:
            self._chunk(handler, {"type": "ERROR", "object": GONE})
            return handler.wfile.write(b"0\r\n\r\n")
        while True:
            with self.changed:
                self.changed.wait_for(
                    lambda seen=seen: self.closing or kind in self.expire
                    or any(version > seen for version, _ in self.events[kind])
                )  # fmt: skip
                if self.closing:
                    return handler.connection.close()
                news = [event for event in self.events[kind] if event[0] > seen]
                if kind in self.expire:
                    self.expire.discard(kind)
                    news = [(self.version, {"type": "ERROR", "object": GONE})]
            for version, event in news:
                seen = version
                self._chunk(handler, event)
                if event["type"] == "ERROR":
                    return handler.wfile.write(b"0\r\n\r\n")

    @staticmethod
    def _chunk(handler, event):
        line = json.dumps(event).encode() + b"\n"
        # In two pieces: a line need not come at once.
        for piece in (line[:7], line[7:]):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.wfile.flush()


def kubeconfig(path, url, token=TOKEN, *, ca=None):
    """A kubeconfig for the fake."""
    cluster = {"server": url}
    if ca:
        cluster["certificate-authority"] = str(ca)
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "fake",
                "clusters": [{"name": "fake", "cluster": cluster}],
                "users": [{"name": "tracer", "user": {"token": token}}],
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "tracer"}}],
            }
        )
    )
    return path
