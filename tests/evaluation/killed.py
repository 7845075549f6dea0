"""Kill a run again and again at random moments; the test reads what this prints."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from swaa.evaluation.prompt import Prompt
from swaa.evaluation.run import execute, find
from tests.evaluation.conftest import byte_tokenizer
from tests.evaluation.fakes import fake_engine, make_run, make_samples

KILLS = 20


def _lines(folder: Path) -> int:
    return sum(file.read_text().count("\n") for file in folder.glob("*[0-9a-f].jsonl"))


def main(folder: Path) -> None:
    run = make_run(Prompt(tokenizer=byte_tokenizer()), count=40)
    samples = make_samples(run)

    def work(where: Path, pause_s: float) -> None:
        execute(run, samples, fake_engine(samples, pause_s=pause_s), folder=where, batch_size=3)

    work(folder / "whole", 0.0)
    chance, survived, kills = random.Random(0), [], 0
    path = folder / "killed" / "eval"
    while kills < KILLS:
        child = os.fork()
        if child == 0:
            work(folder / "killed", 0.02)
            os._exit(0)
        # After some more samples than the last one left, and a moment: anywhere in the next.
        wanted = min(40, _lines(path) + chance.randint(0, 12))
        while _lines(path) < wanted:
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        survived.append(_lines(path))
        if find(run, folder=folder / "killed") is not None and kills < KILLS:
            # It finished before its time: begin anew, the kills so far count.
            for file in path.iterdir():
                file.unlink()
    work(folder / "killed", 0.0)
    print(json.dumps({"kills": kills, "survived": survived}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
