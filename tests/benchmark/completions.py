"""A real server on 127.0.0.1 that streams completions at a known pace, or breaks the protocol.

As a program it stands in for ``vllm serve``: ``python -m tests.benchmark.completions --port N``.
"""

import argparse
import json
import os
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FIRST_S, NEXT_S = 0.06, 0.02
PATIENCE_S = 60
"""Longest wait for what a test is sure to bring about."""


class Completions(ThreadingHTTPServer):
    """Answers with ``script`` first, one fault or None a request, then as asked.

    Args:
        port: 0: any.
        script: faults.
        dies_after: so many requests.
        together: nothing but the first request is answered before so many were under way at once.
        pace: acquired before each further piece.
        metrics: texts that ``/metrics`` answers with, one after another and then the last again;
            without any it is not found.
        other: a token that answers under way together have in the place of the third.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, port=0, script=(), dies_after=None, together=0, pace=None, metrics=(), other=None
    ):
        super().__init__(("127.0.0.1", port), Handler)
        self.script = list(script)
        self.dies_after = dies_after
        self.together = together
        self.pace = pace
        self.metrics = list(metrics)
        self.other = other
        self.bodies, self.written = [], []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Condition()
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """A client that leaves is no event."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):  # the name is the library's
        if self.path != "/metrics":
            self.say(200, b"{}")
        elif not (left := self.server.metrics):
            self.say(404, b"{}")
        else:
            self.say(200, (left.pop(0) if len(left) > 1 else left[0]).encode())

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            body["key"] = self.headers.get("Authorization")
            server.bodies.append(body)
            if server.dies_after is not None and len(server.bodies) > server.dies_after:
                print("out of memory", flush=True)
                os._exit(17)
            fault = server.script.pop(0) if server.script else None
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            server.lock.notify_all()
            if len(server.bodies) > 1 and server.together:
                server.lock.wait_for(lambda: server.most_under_way >= server.together, PATIENCE_S)
            self.alone = server.under_way == 1
        self.counted = True
        try:
            self.answer(fault, body)
        finally:
            self.leave()

    def leave(self):
        """No longer under way; said before the client can know, or its next request comes first."""
        if self.counted:
            self.counted = False
            with self.server.lock:
                self.server.under_way -= 1

    def answer(self, fault, body):
        if fault == "500":
            self.say(500, b"oops\nat line 1")
        elif fault == "unstreamed":
            self.say(200, b'{"choices": []}')
        else:
            self.stream(fault, body)

    def stream(self, fault, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        broken = {
            "malformed": b"data: {not json\n\n",
            "list": b"data: [1]\n\n",
            "words": b'data: {"choices": ["x"]}\n\n',
            "deep": b"data: " + b"[" * 100_000 + b"\n\n",
            "usage": b'data: {"choices": [], "usage": [1]}\n\n',
            "counts": b'data: {"choices": [], "usage": {"completion_tokens": "6"}}\n\n',
            "error": b'data: {"error": {"message": "overload"}}\n\n',
        }
        if fault in broken:
            return self.chunk(broken[fault])
        if fault == "hangs":
            return self.server.closing.wait(PATIENCE_S)
        if fault == "bad chunk":
            return self.wfile.write(b"xyz\r\nnothing\r\n")
        times = []
        time.sleep(FIRST_S)
        count = 0 if fault == "empty" else body["max_tokens"]
        for number in range(count if fault != "broken off" else 1):
            if number:
                time.sleep(NEXT_S)
                if self.server.pace is not None:
                    self.server.pace.acquire(timeout=PATIENCE_S)
            end = "length" if number == count - 1 else None
            if end:
                self.leave()
            times.append(time.perf_counter())
            self.chunk(self.piece(number, end, body))
        if fault == "broken off":
            return None  # the connection closes without the last chunk
        self.server.written.append(times)
        prompt = len(body["prompt"]) + (1 if fault == "one more" else 0)
        usage = {"prompt_tokens": prompt, "completion_tokens": count}
        if fault != "uncounted":
            self.chunk(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
        self.chunk(b": comment\n\ndata: [DONE]\n\n")
        self.chunk(b"")
        return None

    def piece(self, number, end, body):
        # Tokens that are a part of a character have no text.
        choice = {"index": 0, "text": "" if number % 3 == 1 else "a", "finish_reason": end}
        token = body["prompt"][0] + number
        if number == 2 and not self.alone and self.server.other is not None:
            token = self.server.other
        if body.get("return_token_ids"):
            choice["token_ids"] = [token]
        if body.get("logprobs"):
            likely = {f"token_id:{token}": -0.5, "token_id:7": -0.55, "token_id:8": -2.0}
            choice["logprobs"] = {"top_logprobs": [likely]}
        return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def say(self, code, data):
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def completions(**options):
    """A server for as long as the block runs."""
    server = Completions(**options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--dies-after", type=int)
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--refuses", action="store_true")
    args, _ = parser.parse_known_args()
    print("INFO GPU KV cache size: 12,345 tokens", flush=True)
    # A process of its group, which does not end with it, as an engine might.
    if args.stubborn and os.fork() == 0:
        time.sleep(600)
    script = ["500"] if args.refuses else []
    server = Completions(args.port, script, dies_after=args.dies_after)
    print(server.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
