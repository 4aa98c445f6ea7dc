"""python -m edgeprune.cli."""

import sys

from edgeprune.cli.entry import main

if __name__ == "__main__":  # not where a process that is spawned imports it again
    sys.exit(main())
