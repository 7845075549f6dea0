"""An engine that needs no model, and runs with it."""

import dataclasses
import hashlib
import time

from swaa.config import SWAAConfig
from swaa.evaluation.engines import Reply
from swaa.evaluation.run import Run, execute
from swaa.evaluation.tasks.needle import Needle


class FakeEngine:
    """Answers some prompts rightly, always the same ones, and notes which it was asked."""

    def __init__(self, answers, *, pause_s=0.0):
        self._answers = answers
        self._pause_s = pause_s
        self.asked = []

    def describe(self):
        return {"engine": "fake"}

    def answer(self, batches):
        for batch in batches:
            time.sleep(self._pause_s)
            self.asked.append([request.id for request in batch])
            for request in batch:
                odd = hashlib.sha256(request.id.encode()).digest()[0] % 2
                yield Reply(
                    id=request.id,
                    output=f"{self._answers[request.id]} " if odd else "no idea " * 2000,
                    first_token_s=odd / 2,
                    new_tokens=3,
                    truncated=not odd,
                )


def make_run(prompt, *, count=10, config=None, setting="fast", task=None, **changes):
    values = {
        "model": "tiny",
        "model_revision": "test",
        "setting": setting,
        "config": config or SWAAConfig(window=512, sink_tokens=100, full_decode=True),
        "task": task or Needle(),
        "length": 1500,
        "count": count,
        "seed": 0,
        "prompt": prompt,
        "engine": {"engine": "fake"},
    }
    return Run(**(values | changes))


def make_samples(run):
    return run.task.samples(run.prompt, length=run.length, count=run.count, seed=run.seed)


def fake_engine(samples, **options):
    return FakeEngine({sample.id: sample.answers[0] for sample in samples}, **options)


class Knows(FakeEngine):
    """Answers the first ``right`` samples rightly, and no other."""

    def __init__(self, samples, right):
        super().__init__({sample.id: sample.answers[0] for sample in samples})
        self._right = list(self._answers)[:right]

    def answer(self, batches):
        for reply in super().answer(batches):
            said = self._answers[reply.id] if reply.id in self._right else "nothing"
            yield dataclasses.replace(reply, output=said)


def executed(run, right, folder):
    """The outcome of a run that answers the first ``right`` of its samples rightly."""
    samples = make_samples(run)
    return execute(run, samples, Knows(samples, right), folder=folder)
