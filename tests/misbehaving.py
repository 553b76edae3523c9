"""A local HTTP server with an OpenAI-compatible endpoint that misbehaves by plan, and counts what it was asked."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

FAULTS = ("429", "500", "truncated", "hang", "refusal", "repeat")
SYLLABLES = ("ka", "lo", "mi", "ren", "sto", "tu", "va", "wes", "xi", "zor")


def pair(seed: str) -> dict[str, str]:
    """A made-up question with its answer."""
    rng = random.Random(seed)
    name, town, book = ("".join(rng.choices(SYLLABLES, k=3)).title() for _ in range(3))
    return {
        "question": f"Where was the painter {name} born?",
        "answer": f"The painter {name} was born in the town of {town} and lived in a house called {book}.",
    }


class Misbehaving:
    """A server on a free port, as a context manager.

    Args:
        share: Of requests that meet each fault; which ones follows from the request and how often it came.
        hang: Seconds for which a hanging socket says nothing.
        delay: Seconds before a good answer.
        faults: Which faults there are.

    Attributes:
        answered: Good answers that went out in full, by the request's user message.
        faults: Faults that were served, by kind.
        keys: Authorization headers that were sent.
    """

    def __init__(
        self, share: float = 0.1, hang: float = 5.0, delay: float = 0.0, kinds: tuple[str, ...] = FAULTS
    ) -> None:
        self.share, self.hang, self.delay, self.kinds = share, hang, delay, kinds
        self.answered: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.in_flight = self.most_in_flight = 0
        self.reply: Callable[[str, int], tuple[int, dict[str, str], bytes] | None] | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits 40 ms for the client to say that it has the head

            def do_POST(self) -> None:
                outer._serve(self)

            def log_message(self, *arguments: Any) -> None:
                """Nothing on the terminal."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that was killed has closed its sockets."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Misbehaving:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        message = json.loads(body)["messages"][-1]["content"]
        with self._lock:
            self.asked[message] += 1
            count = self.asked[message]
            self.keys.add(handler.headers.get("Authorization"))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            self._answer(handler, message, count)
        finally:
            with self._lock:
                self.in_flight -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, message: str, count: int) -> None:
        if self.reply is not None and (own := self.reply(message, count)) is not None:
            _send(handler, *own)
            return
        draw = random.Random(f"{message}/{count}").random()
        fault = self.kinds[int(draw / self.share)] if draw < self.share * len(self.kinds) else None
        with self._lock:
            self.faults[str(fault)] += 1
        text = json.dumps(pair(f"{message}/{count}"))
        if fault == "429":
            _send(handler, 429, {"Retry-After": "0.05"}, b'{"error": "slow down"}')
            return
        if fault == "500":
            _send(handler, 500, {}, b"oops")
            return
        if fault == "hang":
            self._stop.wait(self.hang)
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        if fault == "refusal":
            text = json.dumps(
                {"question": "Where?", "answer": "I'm sorry, but I cannot help with that request at all."}
            )
        if fault == "repeat":
            text = json.dumps(pair("always the same"))
        if self.delay:
            self._stop.wait(self.delay)
        answer = completion(text)
        _send(handler, 200, {}, answer[: len(answer) // 2] if fault == "truncated" else answer)
        if fault is None:
            with self._lock:
                self.answered[message] += 1


def completion(text: str, reason: str = "stop") -> bytes:
    """The body of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 20}}).encode()


def _send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
