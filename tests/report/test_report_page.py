"""The page itself: readable in both colour schemes, by keyboard and by ear, on a phone, alone in a browser."""

from __future__ import annotations

import html as markup
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import built_results as built
import msgspec
import pytest
import small_bundle as small
from places import ROOT
from report_pages import PARTITION, Outline

from edgeprune.report import write_comparison, write_report
from edgeprune.report.comparison.compared import Compared

LARGEST = 2_000_000  # bytes of a page
STYLE = ROOT / "edgeprune" / "report" / "page" / "report.css"
SCHEMES = ("light", "dark", "print")
TEXT, GRAPHICS = 4.5, 3.0
"""Least contrasts, of WCAG 2.2 at level AA (1.4.3 and 1.4.11)."""


def schemes() -> dict[str, dict[str, str]]:
    """Colours of the page by name: light, dark, and printed, whatever the screen's scheme is."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(), flags=re.DOTALL)
    found = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in blocks]
    return dict(zip(SCHEMES, found, strict=True))


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG defines it, of #rrggbb."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_every_scheme_sets_every_colour() -> None:
    assert len({frozenset(colours) for colours in schemes().values()}) == 1


def test_contrast_is_computed_as_wcag_does() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_text_stands_out_from_what_is_behind_it(scheme: str) -> None:
    colours = schemes()[scheme]
    behind = {
        "ink": ("page", "panel", "warn-panel"), "soft": ("page", "panel"), "accent": ("page",), "good": ("panel",),
        "poor": ("panel",), "warn": ("page",),
    }  # fmt: skip
    poor = {
        f"{text} on {ground}": round(contrast(colours[text], colours[ground]), 2)
        for text, grounds in behind.items()
        for ground in grounds
        if contrast(colours[text], colours[ground]) < TEXT
    }
    assert poor == {}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_colours_of_the_pictures_stand_out_from_the_page(scheme: str) -> None:
    pytest.importorskip("matplotlib")
    from edgeprune.report.figures.drawing import DENSE, GATHER, PRUNED, REORDER
    from edgeprune.report.figures.plots import COLOURS

    page = schemes()[scheme]["page"]
    assert {
        c: contrast(c, page) for c in {DENSE, PRUNED, GATHER, REORDER, *COLOURS} if contrast(c, page) < GRAPHICS
    } == {}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report with everything in it, one of a large network, and a comparison."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("pages")
    bundle = small.write_bundle(folder / "full", profiled=False, partition=PARTITION, lowered=small.lowering())
    mixed = {"CUDAExecutionProvider": 9, "CPUExecutionProvider": 1}
    layers = [built.layer(f"layer{n}.conv", 2.0, 1.0 + n / 2, intensity=2.0**n, bound_ms=0.5) for n in range(5)]
    results = [
        msgspec.structs.replace(
            built.result(
                4.0 * n, 2.5 * n, batch=n, threads=t, samples=40, layers=layers, providers=mixed, settled=n < 8
            ),
            advice=("try --align auto",),
            peak_memory_mb=120.0,
        )
        for n in (1, 8)
        for t in (1, 2)
    ]
    built.put_profile(bundle, built.profile(*results))
    large = small.write_bundle(folder / "large", profiled=False)
    built.put_profile(large, built.profile(*large_results()))
    (full,), (huge,) = (write_report(b, ["html"], into=b) for b in (bundle, large))
    where = built.environment("another processor")
    runs = [built.run(f"run {n}", built.result(4.0, 2.0 + n / 5, layers=layers), top1=97.0) for n in range(3)]
    compared = Compared((*runs, built.run("elsewhere", built.result(), where=where)), "0.1.0")
    write_comparison(compared, {"html": folder / "comparison.html"})
    return {"report": full, "large": huge, "comparison": folder / "comparison.html"}


def large_results() -> Iterator[object]:
    """As of ResNet-101: 104 layers with causes, on three targets with two numbers of threads and three batch sizes."""
    cause = "60 channels a group in, 60 out: off the block of 16, the runtime falls back to im2col"
    names = [f"layer{n // 26}.{n % 26}.downsample.conv{n % 3}" for n in range(104)]
    layers = [built.layer(name, 2.0, 1.0, intensity=1.0 + n, bound_ms=0.2, cause=cause) for n, name in enumerate(names)]
    for target in ("cpu", "cuda", "openvino"):
        for threads in (1, 2):
            for batch in (1, 4, 8):
                yield built.result(4.0, 2.0, target=target, threads=threads, batch=batch, samples=100, layers=layers)


NAMES = ("report", "large", "comparison")


@pytest.mark.parametrize("name", NAMES)
def test_pages_are_small_and_have_what_readers_need(pages: dict[str, Path], name: str) -> None:
    text = pages[name].read_text()
    page = Outline(text)
    assert len(text.encode()) <= LARGEST
    assert page.unbalanced == []
    assert {"header", "main", "nav"} <= set(page.tags)
    first = next(value for tag, key, value in page.attributes if (tag, key) == ("a", "href"))
    assert first == "#content", "the first link skips to the content"
    assert ("main", "id", "content") in page.attributes
    assert page.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert page.tags.count("table") == page.tags.count("caption") > 0
    assert page.tags.count("th") == sum((tag, key) == ("th", "scope") for tag, key, _ in page.attributes)
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    named = [
        value for tag, key, value in page.attributes if tag == "svg" and key in ("aria-labelledby", "aria-describedby")
    ]
    assert named
    assert set(named) <= set(ids)
    assert {"svg"} == {tag for tag, key, value in page.attributes if (key, value) == ("role", "img")}


@pytest.mark.parametrize("name", NAMES)
def test_pages_forbid_themselves_to_load_anything(pages: dict[str, Path], name: str) -> None:
    text = pages[name].read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    page = Outline(text)
    assert not {"script", "iframe", "object", "embed", "img", "form", "base"} & set(page.tags)
    for tag, key, value in page.attributes:
        assert not key.startswith("on"), (tag, key)
        if key in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
            assert value.startswith(("#", "data:")), (tag, key, value[:60])
    outside = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, (
        "names of languages, never fetched"
    )


def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium here")
    return found


def browse(page: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page; nothing outside can be reached, neither by it nor by the browser's own services."""
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--enable-logging=stderr",
        "--no-first-run", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'browser'}", f"--log-net-log={folder / 'net.json'}", *flags, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


OWN = "not an origin"
"""What Chromium notes as the origin of its own requests."""


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def requests(folder: Path) -> set[str]:
    """What pages asked for from the network; what the browser asks for itself comes from no origin."""
    asked = [event.get("params", {}) for event in json.loads((folder / "net.json").read_text())["events"]]
    found = {str(given["url"]) for given in asked if "url" in given and given.get("initiator", OWN) != OWN}
    return {url for url in found if url.startswith(("http", "ws", "ftp"))}


@pytest.mark.parametrize(("name", "size"), [("report", "1200,3000"), ("comparison", "500,3000")])
def test_a_browser_shows_the_page_without_complaint_or_request(
    pages: dict[str, Path], tmp_path: Path, name: str, size: str
) -> None:
    picture = tmp_path / "shot.png"
    done = browse(pages[name], tmp_path, f"--window-size={size}", f"--screenshot={picture}")
    assert complaints(done) == []
    assert requests(tmp_path) == set()
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 20_000


def test_a_page_that_asks_and_complains_would_be_seen(tmp_path: Path) -> None:
    page, asked = tmp_path / "bad.html", "http://127.0.0.1:9/x.png"
    page.write_text(f'<!DOCTYPE html><title>x</title><img src="{asked}"><script>console.error("no")</script>')
    done = browse(page, tmp_path, f"--screenshot={tmp_path / 'x.png'}")
    assert complaints(done)
    assert requests(tmp_path) == {asked}


def test_no_page_scrolls_sideways_from_a_small_phone_to_a_desk(pages: dict[str, Path], tmp_path: Path) -> None:
    """Measured by a page around them: the reports themselves forbid all scripts. What is folded is opened."""
    frames = [
        f'<iframe title="{name} {width}" width="{width}" height="900" style="border:0" '
        f'srcdoc="{markup.escape(pages[name].read_text(), quote=True)}"></iframe>'
        for name, width in (("report", 320), ("report", 1200), ("comparison", 320), ("large", 390))
    ]
    page = tmp_path / "frames.html"
    page.write_text(
        f"<!DOCTYPE html><title>x</title>{''.join(frames)}<p id='told'></p><script>onload = () => {{ let told = '';"
        " for (const frame of document.querySelectorAll('iframe')) { const page = frame.contentDocument;"
        " for (const part of page.querySelectorAll('details')) part.open = true;"
        " told += frame.title + ' ' + page.documentElement.scrollWidth + ';'; }"
        " document.getElementById('told').textContent = told; }</script>"
    )
    done = browse(page, tmp_path, "--window-size=1400,1000", "--dump-dom")
    found = re.findall(r"([a-z]+) (\d+) (\d+);", done.stdout.partition('<p id="told">')[2])
    assert len(found) == len(frames)
    assert [(name, width, needed) for name, width, needed in found if int(needed) > int(width)] == []
    assert complaints(done) == []
