"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as edgeprune does, which some tests import behind ONNX Runtime
ROOT = Path(__file__).resolve().parent.parent
os.environ.pop("COLUMNS", None)  # pytest's workers are told 80, which cuts the tables that tests read


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real checkpoints, tickets and images; the test is skipped where there is none."""
    folder = Path(os.environ.get("EDGEPRUNE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data here: set EDGEPRUNE_TEST_DATA to a folder with checkpoints/ and tickets_resnet20/")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT
