"""Measure this machine, and write what was found as a device profile."""
