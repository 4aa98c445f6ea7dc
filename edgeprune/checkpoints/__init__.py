"""Checkpoints as people have them, read without executing anything."""
