"""``python -m swaa.cli``: the command where its script is not installed."""

from __future__ import annotations

import sys

from swaa.cli import main

sys.exit(main())
