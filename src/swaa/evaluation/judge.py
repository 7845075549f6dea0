"""A language model that decides whether a free answer means the same as the right one.

The judge is asked once per answer, at temperature 0, to give a reason and to end with a line that
is CORRECT or WRONG. Only a reply whose last word is one of the two is a verdict; any other is
kept as unparseable, counted, and never taken as correct.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa.evaluation.sample import Sample
from swaa.files import SamplesFile
from swaa.http.endpoint import Endpoint

PROMPT = """\
Decide whether an answer to a question is right. You are given the question, the reference answer \
that is known to be right, and the answer to decide about.

The answer is right if it says what the reference says, in whatever words and at whatever length. \
Dates and times may be written in any form, and relative ones are right if they mean the same day \
or period. If the reference lists alternatives joined by "or", one of them suffices. The answer is \
wrong if it contradicts the reference, leaves out what was asked for, or is too vague to tell. If \
the reference says that the question cannot be answered, an answer that says so too is right.

Question: {question}
Reference answer: {reference}
Answer to decide about: {answer}

Give your reason in one sentence. Then write, on a line of its own, CORRECT or WRONG."""
"""What the judge reads."""

VERSION = 1
"""Version of the prompt and the parsing, part of each cached verdict's key."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The model that judges.

    Attributes:
        endpoint: where to ask.
        concurrency: answers judged at once.
        max_tokens: longest verdict with its reason, thoughts included (tokens).
    """

    endpoint: Endpoint
    concurrency: int = 8
    max_tokens: int = 2_000

    def ask(self, question: str, reference: str, answer: str) -> str:
        """The judge's reply to one answer.

        Raises:
            EndpointError: when there is no reply.
        """
        text = PROMPT.format(question=question, reference=reference, answer=answer)
        messages = [{"role": "user", "content": text}]
        return self.endpoint.chat(messages, max_tokens=self.max_tokens).text


def parse_verdict(reply: str) -> bool | None:
    r"""Whether the judge finds the answer right; ``None``: its reply holds no verdict.

    >>> parse_verdict("It names the same day.\n**CORRECT**"), parse_verdict("I cannot say.")
    (True, None)
    """
    words = re.findall(r"[A-Za-z]+", reply.rpartition("</think>")[2])
    return {"CORRECT": True, "WRONG": False}.get(words[-1] if words else "")


def apply_verdicts(
    judge: Judge,
    records: Sequence[dict[str, Any]],
    samples: Mapping[str, Sample],
    cache: Path,
) -> list[dict[str, Any]]:
    """Records with their scores filled in.

    Args:
        judge: asked for what the cache does not hold.
        records: of one run; those with a score, and those without an answer, do not change.
        samples: by id.
        cache: file of verdicts, appended to as they come.

    Raises:
        EndpointError: when the judge fails after all retries; earlier verdicts are kept.
    """
    keys = {
        record["id"]: _key(judge, samples[record["id"]], record["extracted"])
        for record in records
        if record["score"] is None
    }
    with SamplesFile(cache) as file, ThreadPoolExecutor(judge.concurrency) as pool:
        known = {line["id"]: line["reply"] for line in file.samples}
        asked = {}
        for record in records:
            key = keys.get(record["id"])
            if key is not None and key not in known and key not in asked.values():
                sample = samples[record["id"]]
                future = pool.submit(
                    judge.ask,
                    sample.tags["asked"],
                    " or ".join(sample.answers),
                    record["extracted"],
                )
                asked[future] = key
        try:
            for future in as_completed(asked):
                known[asked[future]] = future.result()
                file.append({"id": asked[future], "reply": future.result()})
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [_judged(record, known.get(keys.get(record["id"], ""))) for record in records]


def _judged(record: dict[str, Any], reply: str | None) -> dict[str, Any]:
    if reply is None:
        return record
    verdict = parse_verdict(reply)
    return {**record, "score": None if verdict is None else float(verdict), "verdict": reply}


def _key(judge: Judge, sample: Sample, answer: str) -> str:
    parts = (str(VERSION), judge.endpoint.model, sample.tags["asked"], *sample.answers, answer)
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:16]
