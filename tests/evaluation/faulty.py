"""Runs `swaa eval` as one process of several, and lets one of them fail at a given batch.

``FAULT`` is ``KIND:RANK:BATCH``, of which the kind is ``raise`` or ``kill`` (-9).
"""

import os
import signal
import sys

from swaa.cli import main as swaa
from swaa.evaluation.engines.transformers import TransformersEngine


def main(argv):
    kind, rank, wanted = os.environ["FAULT"].split(":")
    generate, calls = TransformersEngine._generate, []

    def fail(engine, batch):
        calls.append(batch)
        if os.environ["RANK"] == rank and len(calls) == int(wanted):
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no more")
        return generate(engine, batch)

    TransformersEngine._generate = fail
    return swaa(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
