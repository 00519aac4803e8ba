"""One resource of the API: listed page by page, then watched, for as long as we run."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
from urllib3.exceptions import HTTPError

from tracer.cluster.access import METADATA_EVENTS, METADATA_ONLY
from tracer.cluster.store import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import urllib3

    from tracer.cluster.access import Access
    from tracer.cluster.parse import Json
    from tracer.cluster.store import Store

PAGE = 500
ANSWER_S = 60.0
"""Longest silence while a list comes."""
WATCH_S = 240
"""When the server ends a watch by itself; the next goes on where it ended."""
SILENCE_S = WATCH_S + 30.0
MIN_RETRY_S, MAX_RETRY_S = 0.5, 60.0
SETTLED_S = 20.0
"""A connection that lasted so long was good: something between here and there cut it."""
READ_BYTES = 1 << 16
NONSENSE = ValueError, KeyError, TypeError, AttributeError
"""What reading an object raises that is not as the API has it."""
OK, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, GONE = 200, 401, 403, 404, 410


@dataclass(frozen=True, slots=True)
class Resource:
    """What is listed and watched."""

    kind: str
    path: str
    lost: str
    """What is missing without it."""
    metadata_only: bool = False


RESOURCES = (
    Resource("pods", "/api/v1/pods", "names of pods on other nodes"),
    Resource("services", "/api/v1/services", "names of Services"),
    Resource(
        "endpointslices",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "endpoints of Services",
    ),
    Resource(
        "networkpolicies",
        "/apis/networking.k8s.io/v1/networkpolicies",
        "what NetworkPolicies allow",
    ),
    Resource(
        "namespaces", "/api/v1/namespaces", "NetworkPolicies by namespace", metadata_only=True
    ),
    Resource("replicasets", "/apis/apps/v1/replicasets", "Deployments of pods", metadata_only=True),
    Resource("jobs", "/apis/batch/v1/jobs", "CronJobs of pods", metadata_only=True),
)


class ExpiredError(Exception):
    """The version that was asked for is too old: all has to be listed again."""


class RefusedError(Exception):
    """The server answers with something else than what was asked for."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Watcher:
    """Keeps one table of the store true. `run` is a thread's work."""

    def __init__(
        self,
        resource: Resource,
        access: Access,
        store: Store,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called in the watcher's thread after each change of store or warning."""
        self.resource = resource
        self.synced = threading.Event()
        """Set once a list was complete."""
        self.trouble = ""
        """Why the table may be stale; empty while all is well."""
        self.lists = 0
        """How often all was listed."""
        self._access, self._store, self._changed = access, store, changed
        self._version = ""
        """What was seen last; empty: all has to be listed."""
        self._stopped = threading.Event()
        self._response: urllib3.BaseHTTPResponse | None = None

    def stop(self) -> None:
        """End soon, even while an answer is awaited; from any thread."""
        self._stopped.set()
        response = self._response
        if response is not None:
            # urllib3 since 2.3 can wake a reader; before, it ends with the next word.
            with contextlib.suppress(ValueError, OSError):  # it has just ended
                getattr(response, "shutdown", response.close)()

    def run(self) -> None:
        """List and watch until stopped; trouble is told in `trouble` and retried."""
        retry_s = MIN_RETRY_S
        while not self._stopped.is_set():
            began_s, pause_s = time.monotonic(), MIN_RETRY_S
            try:
                if self._version:
                    self._watch()
                else:
                    self._list()
                retry_s = MIN_RETRY_S
            except ExpiredError:
                self._version = ""
            except (HTTPError, OSError, RefusedError, *NONSENSE) as error:
                if time.monotonic() - began_s > SETTLED_S:
                    retry_s = MIN_RETRY_S
                elif not self._stopped.is_set():
                    self._tell(_words(error))
                pause_s = retry_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
                retry_s = min(2 * retry_s, MAX_RETRY_S)
            # However the server behaves, we do not spin.
            self._stopped.wait(pause_s - (time.monotonic() - began_s))

    def _list(self) -> None:
        """Take all objects, page by page."""
        self.lists += 1
        keys: set[str] = set()
        query = {"limit": str(PAGE)}
        while not self._stopped.is_set():
            accept = METADATA_ONLY if self.resource.metadata_only else "application/json"
            page: Json = orjson.loads(b"".join(self._answer(query, accept, ANSWER_S)))
            for item in page.get("items") or ():
                keys.add(self._store.put(self.resource.kind, item))
            metadata = page["metadata"]
            self._changed()
            if not metadata.get("continue"):
                self._store.keep_only(self.resource.kind, keys)
                self.synced.set()
                self._tell("")
                self._version = metadata["resourceVersion"]
                return
            query = {"limit": str(PAGE), "continue": metadata["continue"]}

    def _watch(self) -> None:
        """Follow the changes since what was seen last, until the server ends it."""
        query = {
            "watch": "1",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        accept = METADATA_EVENTS if self.resource.metadata_only else "application/json"
        for line in _lines(self._answer(query, accept, SILENCE_S)):
            event = orjson.loads(line)
            item = event["object"]
            if event["type"] == "ERROR":
                _refuse(item.get("code", 0), item.get("message", "an error without words"))
            if event["type"] == "DELETED":
                self._store.drop(self.resource.kind, key_of(self.resource.kind, item))
            elif event["type"] != "BOOKMARK":
                self._store.put(self.resource.kind, item)
            self._version = item["metadata"]["resourceVersion"]
            self._changed()

    def _answer(self, query: dict[str, str], accept: str, silence_s: float) -> Iterator[bytes]:
        """The body of an answer, in pieces as they come; `stop` ends it."""
        response = self._access.get(self.resource.path, query, accept, silence_s)
        self._response = response
        try:
            if self._stopped.is_set():
                return
            if response.status != OK:
                _refuse(response.status, _message(response.read(READ_BYTES)))
            if "watch" in query:
                self._tell("")
            yield from response.stream(READ_BYTES, decode_content=True)
        finally:
            self._response = None
            response.release_conn()
            response.close()

    def _tell(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._changed()


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Whole lines; what a broken connection left of the last one is dropped."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from filter(None, lines)


def _refuse(status: int, message: str) -> None:
    if status == GONE:
        raise ExpiredError(message)
    raise RefusedError(status, message)


def _message(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()[:200] or "no message"


def _words(error: Exception) -> str:
    """What is wrong, the same words for the same cause, so that they are told once."""
    if isinstance(error, RefusedError):
        known = {
            UNAUTHORIZED: "the credentials are not accepted",
            FORBIDDEN: "not allowed",
            NOT_FOUND: "not known to this server",
        }
        return known.get(error.status, f"refused: {error}")
    if isinstance(error, (HTTPError, OSError)):
        return f"no answer ({type(error).__name__})"
    return "the answer is not understood"
