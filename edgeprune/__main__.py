"""python -m edgeprune, as torchrun starts it."""

import sys

from edgeprune.cli import main

if __name__ == "__main__":  # not where a process that is spawned imports it again
    sys.exit(main())
