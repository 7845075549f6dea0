"""`python -m swaa` is the command `swaa`."""

import sys

from swaa.cli import main

if __name__ == "__main__":
    sys.exit(main())
