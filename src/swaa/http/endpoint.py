"""An OpenAI-compatible endpoint: one chat or text completion at a time, with retries."""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from swaa.http.address import Address
from swaa.layers import shown

Kind = TypeVar("Kind")

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""HTTP status codes after which another attempt may succeed."""


class EndpointError(ConnectionError):
    """The endpoint did not answer, or not as the protocol requires."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer.

    Attributes:
        text: what was generated; where a server separates thoughts, they are included in
            ``<think>`` tags.
        first_token_s: seconds from sending to the first piece of text.
        new_tokens: as the server counts them; ``None``: it does not say.
        finish_reason: ``stop``, ``length`` or whatever else the server says.
    """

    text: str
    first_token_s: float
    new_tokens: int | None
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class Endpoint(Address):
    """Where to ask, and how often.

    Attributes:
        retries: further attempts after a temporary failure.
        backoff_s: wait before the first retry, doubled each time (seconds).
        longest_wait_s: upper limit of a wait (seconds).
    """

    retries: int = 6
    backoff_s: float = 1.0
    longest_wait_s: float = 60.0

    def chat(self, messages: Iterable[Mapping[str, str]], **options: Any) -> Completion:
        """Answer a conversation at temperature 0.

        Args:
            messages: with ``role`` and ``content``.
            options: more keys of the request, such as ``max_tokens``.

        Raises:
            EndpointError: when there is no answer.
        """
        return self._post("chat/completions", {"messages": list(messages), **options})

    def complete(self, ids: Sequence[int], **options: Any) -> Completion:
        """Continue token ids at temperature 0; options and errors as for :meth:`chat`."""
        return self._post("completions", {"prompt": list(ids), **options})

    def _post(self, path: str, body: dict[str, Any]) -> Completion:
        body = {"model": self.model, "temperature": 0, "stream": True, **body}
        body["stream_options"] = {"include_usage": True}
        url = self.resource(path)
        request = urllib.request.Request(url, json.dumps(body).encode(), self.headers())
        reason = ""
        for attempt in range(self.retries + 1):
            try:
                return self._send(request)
            except _PassingError as error:
                reason = str(error)
                if attempt < self.retries:
                    time.sleep(self._wait(attempt, error.wait_s))
        raise EndpointError(
            f"{url} failed {self.retries + 1} times, last: {reason}; check that the server runs and"
            " that the URL is right, then run the same command again"
        )

    def _wait(self, attempt: int, asked: float | None) -> float:
        wait = self.backoff_s * 2**attempt if asked is None else asked
        # Jitter, so that several requests do not retry at the same moment.
        return min(self.longest_wait_s, wait) * random.uniform(0.75, 1.0)

    def _send(self, request: urllib.request.Request) -> Completion:
        started = time.perf_counter()
        try:
            with _OPENER.open(request, timeout=self.timeout_s) as response:
                return _read(response, started)
        except EndpointError:
            raise
        except urllib.error.HTTPError as error:
            with error:
                said = " ".join(error.read(2000).decode("utf-8", "replace").split())
            if error.code in RETRIED:
                wait = error.headers.get("Retry-After", "")
                seconds = float(wait) if wait.isdecimal() else None
                raise _PassingError(f"HTTP {error.code}: {said:.200}", seconds) from None
            raise EndpointError(
                f"{request.full_url} refused the request, HTTP {error.code}: {said:.300}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            raise _PassingError(str(cause) or type(cause).__name__) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: a redirected request would take the key to another address."""

    def redirect_request(self, *_args: Any, **_options: Any) -> None:
        """Follow none: the redirect becomes an error."""


_OPENER = urllib.request.build_opener(_NoRedirect)


class _PassingError(Exception):
    """Worth another attempt, perhaps after the number of seconds that the server asked for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def _read(response: Any, started: float) -> Completion:
    """Put a streamed answer together; servers that do not stream send one object."""
    kind = response.headers.get_content_type()
    if kind != "text/event-stream":
        return _whole(response.read(), started)
    thoughts, words, first, finish, tokens, ended = [], [], None, "", None, False
    for raw in response:
        line = raw.decode("utf-8", "replace").strip()
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            ended = True
            break
        thought, text, reason, used = _parts(_object(data))
        if first is None and (thought or text):
            first = time.perf_counter() - started
        thoughts.append(thought)
        words.append(text)
        finish, tokens = reason or finish, used if used is not None else tokens
    if not (ended or finish):
        raise _PassingError("the answer broke off")
    first = time.perf_counter() - started if first is None else first
    return _completion("".join(thoughts), "".join(words), first, tokens, finish)


def _whole(data: bytes, started: float) -> Completion:
    thought, text, reason, used = _parts(_object(data.decode("utf-8", "replace")))
    if not reason:
        raise _PassingError("the answer has no finish_reason")
    return _completion(thought, text, time.perf_counter() - started, used, reason)


def _completion(
    thought: str, text: str, first: float, tokens: int | None, finish: str
) -> Completion:
    if thought:
        text = f"<think>{thought}</think>{text}" if text else f"<think>{thought}"
    return Completion(
        text=text, first_token_s=first, new_tokens=tokens, finish_reason=finish or "stop"
    )


def _object(data: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _PassingError(f"the answer is not JSON: {data:.100}") from None
    if not isinstance(value, dict):
        raise _PassingError(f"the answer is not a JSON object: {data:.100}")
    if value.get("error") is not None:
        raise _PassingError(f"the server says: {json.dumps(value['error']):.200}")
    return value


def _parts(value: dict[str, Any]) -> tuple[str, str, str | None, int | None]:
    """Thought, text, finish reason and token count of one object."""
    used = _field(_field(value, "usage", dict) or {}, "completion_tokens", int)
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices:
        if used is None:
            raise _PassingError(f"the answer has no choices: {json.dumps(value):.100}")
        return "", "", None, used  # the last piece of a stream holds only the counts
    choice = _field({"choices[0]": choices[0]}, "choices[0]", dict) or {}
    said = _field(choice, "delta", dict) or _field(choice, "message", dict)
    said = said or {"content": _field(choice, "text", str)}
    thought = _field(said, "reasoning_content", str) or _field(said, "reasoning", str) or ""
    return thought, _field(said, "content", str) or "", _field(choice, "finish_reason", str), used


def _field(value: Mapping[str, Any], name: str, kind: type[Kind]) -> Kind | None:
    """The value of a field in the answer, None where it is missing or null.

    Raises:
        EndpointError: for another kind of value: a retry would get the same.
    """
    found = value.get(name)
    if found is None or (isinstance(found, kind) and not isinstance(found, bool)):
        return found
    raise EndpointError(
        f"the server does not speak OpenAI's protocol: '{name}' is {shown(found)}; check that the"
        " URL is that of an OpenAI-compatible server"
    )
