"""A real server on 127.0.0.1 that speaks the chat and completion protocol, or breaks it."""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread


class Server:
    """Answers with ``script`` first, one item a request, then with ``default``.

    An item is a text to answer with, the bytes of one piece, or one of the faults: ``429``,
    ``500``, ``400``, ``truncated``, ``malformed``, ``empty``, ``error``, ``slow``,
    ``unstreamed``, ``thoughts``.
    """

    def __init__(self, default):
        self.default = default
        self.script = []
        self.requests = []
        self.lock = Lock()
        self.url = ""

    def next(self, body):
        with self.lock:
            self.requests.append(body)
            item = self.script.pop(0) if self.script else self.default
        return item(body) if callable(item) else item


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_POST(self):  # the name is the library's
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body |= {"path": self.path, "key": self.headers.get("Authorization")}
            item = server.next(body)
            faults = {
                "429": lambda: self.say(429, b"slow down", retry_after="0"),
                "500": lambda: self.say(500, b"oops"),
                "redirect": lambda: self.say(302, b"", location="/v1/elsewhere"),
                "400": lambda: self.say(400, b'{"error": "prompt too long"}'),
                "truncated": lambda: self.stream([_piece("half an ans")], length=10_000),
                "malformed": lambda: self.stream([b"data: {not json\n\n"]),
                "empty": lambda: self.stream([b'data: {"choices": []}\n\n']),
                "error": lambda: self.stream([b'data: {"error": {"message": "overload"}}\n\n']),
                "unstreamed": lambda: self.say(200, _whole("all at once")),
                "thoughts": lambda: self.stream(
                    [_piece("", reasoning_content="hm"), _piece("yes", end=True)]
                ),
            }
            if isinstance(item, bytes):
                self.stream([b"data: " + item + b"\n\n"])
            elif item in faults:
                faults[item]()
            else:
                half = len(item) // 2
                self.stream(
                    [
                        b": comment\n\n",
                        _piece(item[:half], path=self.path),
                        _piece(item[half:], path=self.path, end=True),
                        b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\n',
                        b"data: [DONE]\n\n",
                    ]
                )

        def say(self, code, data, retry_after=None, location=None):
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if retry_after is not None:
                self.send_header("Retry-After", retry_after)
            if location is not None:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(data)

        def stream(self, pieces, length=None):
            data = b"".join(pieces)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            # A length that is never reached: the connection breaks off.
            self.send_header("Content-Length", str(length or len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = True

    return Handler


def _piece(text, *, path="chat/completions", end=False, **delta):
    choice = {"index": 0, "finish_reason": "stop" if end else None}
    if path.endswith("chat/completions"):
        choice["delta"] = {"content": text, **delta}
    else:
        choice["text"] = text
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


def _whole(text):
    choice = {"message": {"content": text}, "finish_reason": "length"}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}}).encode()


@contextmanager
def serve(default="CORRECT"):
    """A server for as long as the block runs."""
    server = Server(default)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
