"""The command line: one module a verb parses, calls `pipeline` and prints. No logic, and nothing heavy is imported
before it is needed."""

from edgeprune.cli.app import app
from edgeprune.cli.entry import EXIT_BUG, EXIT_INTERRUPTED, main

__all__ = ["EXIT_BUG", "EXIT_INTERRUPTED", "app", "main"]
