"""Where things lie in the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BENCHMARKS = ROOT / "examples" / "benchmarks"
PAPERS = ROOT / "examples" / "papers"
DEVICE_PROFILES = ROOT / "device_profiles"
SUPPORT = ROOT / "tests" / "support"
"""Modules that tests share; pytest puts them on the path."""
