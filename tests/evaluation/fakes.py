"""An engine that needs no model, and runs with it."""

import hashlib
import time

from swaa.config import SWAAConfig
from swaa.evaluation.engines import Reply
from swaa.evaluation.run import Run
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
