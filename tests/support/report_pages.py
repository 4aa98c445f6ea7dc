"""What the tests of the report's pages share: a split that a bundle tells of, and what a page holds."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import small_bundle as small

from edgeprune.io.files import pretty_json

PARTITION = pretty_json(
    {
        "schema_version": 1,
        "devices": [
            {
                "name": "pi0",
                "profile": "raspberry-pi-5",
                "subgraphs": ["pi0/stage_00.onnx", "pi0/stage_01.onnx"],
                "macs": 1_400_000,
                "weight_bytes": 51_200,
            },
            {
                "name": "pi1",
                "profile": "raspberry-pi-5",
                "subgraphs": ["pi1/stage_01.onnx"],
                "macs": 600_000,
                "weight_bytes": 9_216,
            },
        ],
        "stages": [
            {"index": 0, "kind": "host", "subgraphs": {"pi0": "pi0/stage_00.onnx"}, "layers": []},
            {
                "index": 1,
                "kind": "parallel",
                "subgraphs": {"pi0": "pi0/stage_01.onnx", "pi1": "pi1/stage_01.onnx"},
                "layers": [small.MIDDLE],
            },
        ],
        "transfers": [{"from": "pi0", "to": "pi1", "tensor": "b", "bytes": 9_216, "stage": 1}],
        "predicted": {"latency_ms": 1.5, "speedup": 0.8, "bytes_per_inference": 9_216, "basis": "an estimate"},
        "inputs": [],
        "outputs": [],
        "something_new": 1,
    }
)


class Outline(HTMLParser):
    """What a page holds."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.headings: list[int] = []
        self.unbalanced: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)
