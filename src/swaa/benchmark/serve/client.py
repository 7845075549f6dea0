"""One streamed completion, timed piece by piece; failures are reported, never raised."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swaa.benchmark.serve.workload import Workload
from swaa.http.address import Address
from swaa.layers import shown


class _BrokenError(Exception):
    """The answer is not what the protocol says, or not what was asked for."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one request did.

    Attributes:
        sent: when it was sent, by ``time.perf_counter`` (seconds).
        pieces: when each piece of the answer came.
        new_tokens: as the server counts them; where it does not, the number of pieces.
        tokens: ids of the new tokens, where they were asked for.
        likely: for each new token, where asked for, the log-probabilities of the likeliest ones;
            their names are ``token_id:N``.
        error: what went wrong; ``None``: nothing did.
    """

    sent: float
    pieces: tuple[float, ...] = ()
    new_tokens: int = 0
    tokens: tuple[int, ...] = ()
    likely: tuple[Mapping[str, float], ...] = ()
    error: str | None = None

    @property
    def first_token_s(self) -> float:
        """Seconds from sending to the first piece."""
        return self.pieces[0] - self.sent

    @property
    def latency_s(self) -> float:
        """Seconds from sending to the last piece."""
        return self.pieces[-1] - self.sent

    @property
    def token_s(self) -> float | None:
        """Seconds per token after the first; ``None``: there is no second token."""
        if self.new_tokens < 2:
            return None
        return (self.pieces[-1] - self.pieces[0]) / (self.new_tokens - 1)


TOKENS: Mapping[str, Any] = {"return_token_ids": True}
"""Asks vLLM for the ids of the new tokens."""

LIKELY: Mapping[str, Any] = {**TOKENS, "logprobs": 20, "return_tokens_as_token_ids": True}
"""Asks vLLM for the likeliest tokens at each place, too."""


def encode_request(
    address: Address, ids: Sequence[int], workload: Workload, extra: Mapping[str, Any] | None = None
) -> bytes:
    """The body of a request; made in advance, since encoding long prompts takes a while.

    Args:
        address: of the server, and how it calls the model.
        ids: of the prompt.
        workload: says how many tokens are generated.
        extra: what else is asked for, such as :data:`TOKENS`.
    """
    body = {
        "model": address.model,
        "prompt": ids,
        "max_tokens": workload.output_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        # Otherwise a random prompt may be answered at once by an end-of-text token.
        "ignore_eos": True,
        **(extra or {}),
    }
    return json.dumps(body, separators=(",", ":")).encode()


def connection_to(address: Address) -> http.client.HTTPConnection:
    """A connection to a server, not opened yet."""
    parts = urllib.parse.urlsplit(address.url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=address.timeout_s)


def request(address: Address, body: bytes, *, input_tokens: int) -> Timing:
    """Send a request and read its stream to the end.

    Args:
        address: where to.
        body: from :func:`encode_request`.
        input_tokens: of the prompt; a server that counts another number served another prompt.
    """
    connection = connection_to(address)
    path = urllib.parse.urlsplit(address.resource("completions")).path
    headers = {**address.headers(), "Accept": "text/event-stream"}
    sent = time.perf_counter()
    try:
        connection.request("POST", path, body, headers)
        return _read(connection.getresponse(), sent, input_tokens)
    except TimeoutError:
        return Timing(sent=sent, error=f"no data for {address.timeout_s:g} s")
    except (_BrokenError, OSError, http.client.HTTPException) as error:
        return Timing(sent=sent, error=_reason(error))
    finally:
        connection.close()


def _read(response: http.client.HTTPResponse, sent: float, input_tokens: int) -> Timing:
    if response.status != 200:
        said = " ".join(response.read(2000).decode("utf-8", "replace").split())
        raise _BrokenError(f"HTTP {response.status}: {said:.200}")
    if "text/event-stream" not in (response.getheader("Content-Type") or ""):
        raise _BrokenError("the server does not stream")
    pieces: list[float] = []
    ids: list[int] = []
    likely: list[Mapping[str, float]] = []
    usage: dict[str, Any] = {}
    finished = False
    for raw in response:
        now = time.perf_counter()
        line = raw.strip()
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            finished = True
            break
        value = _object(data)
        usage = _counts(value) or usage
        choices = value.get("choices")
        if isinstance(choices, list) and choices:
            # Text may be empty: a token can be part of a character.
            pieces.append(now)
            ids += _field(choices[0], "token_ids") or ()
            likely += _field(_field(choices[0], "logprobs") or {}, "top_logprobs") or ()
            finished = finished or bool(_field(choices[0], "finish_reason"))
    if not finished:
        raise _BrokenError("the answer broke off")
    if not pieces:
        raise _BrokenError("the answer is empty")
    counted = usage.get("prompt_tokens", input_tokens)
    if counted != input_tokens:
        raise _BrokenError(f"the server counts {counted} prompt tokens, expected {input_tokens}")
    tokens = usage.get("completion_tokens") or len(pieces)
    return Timing(
        sent=sent,
        pieces=tuple(pieces),
        new_tokens=tokens,
        tokens=tuple(ids),
        likely=tuple(likely),
    )


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _BrokenError(f"a piece is not JSON: {data.decode('utf-8', 'replace'):.80}") from None
    if not isinstance(value, dict):
        raise _BrokenError(f"a chunk is not a JSON object: {shown(value)}")
    if value.get("error") is not None:
        raise _BrokenError(f"the server says: {json.dumps(value['error']):.200}")
    return value


def _counts(piece: dict[str, Any]) -> dict[str, Any] | None:
    """The token counts in a piece: whole numbers by name, or None."""
    usage = piece.get("usage")
    if usage is None:
        return None
    names = ("prompt_tokens", "completion_tokens")
    if isinstance(usage, dict) and {type(usage.get(name)) for name in names} <= {int, type(None)}:
        return usage
    raise _BrokenError(f"the usage is not an object of whole numbers: {shown(usage)}")


def _field(choice: object, name: str) -> Any:
    if not isinstance(choice, dict):
        raise _BrokenError(f"a choice is not a JSON object: {shown(choice)}")
    return choice.get(name)


def _reason(error: Exception) -> str:
    """Short, and the same for the same cause, so that failures can be counted by cause."""
    if isinstance(error, _BrokenError):
        return str(error)
    if isinstance(error, (http.client.IncompleteRead, ConnectionResetError, BrokenPipeError)):
        return "the answer broke off"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the server hung up"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
