"""Data sources, normalisation, batches and augmentation."""

from __future__ import annotations

import logging
import os
import pickle  # noqa: TID251  # to make the files that are read without unpickling
import resource
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeprune.checkpoints.checkpoint import load_into, read_state_dict
from edgeprune.datasets import names
from edgeprune.datasets.images import (
    RGB_MEAN,
    RGB_STD,
    Dataset,
    augmented,
    batches,
    check_labels,
    load_data,
    normalised,
)
from edgeprune.datasets.sources import balanced
from edgeprune.errors import InputError
from edgeprune.io.progress import shown
from edgeprune.training.loop import evaluate
from edgeprune.zoo import build

logging.getLogger("PIL").setLevel(logging.ERROR)
RGB = (3, 32, 32)


def dataset(images: torch.Tensor, labels: torch.Tensor | None = None, **options: object) -> Dataset:
    channels = images.shape[1]
    values = {"classes": (), "mean": (0.0,) * channels, "std": (1.0,) * channels, **options}
    return Dataset("test", images, torch.zeros(len(images), dtype=torch.long) if labels is None else labels, **values)  # type: ignore[arg-type]


def refusal(spec: str, **options: object) -> str:
    with pytest.raises(InputError) as error:
        load_data(spec, **{"split": "train", "input_shape": RGB, **options})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


# -- digits ------------------------------------------------------------------------------------------------------------
def test_digits_are_split_the_same_way_every_time_with_the_classes_shares_kept() -> None:
    train = load_data("digits", split="train", input_shape=(1, 8, 8))
    test = load_data("digits", split="test", input_shape=(1, 8, 8))
    again = load_data("digits", split="test", input_shape=(1, 8, 8))
    assert (len(train), len(test)) == (1437, 360)
    assert torch.equal(test.images, again.images)
    assert all(34 <= n <= 38 for n in test.labels.bincount().tolist())
    assert train.classes == tuple("0123456789")
    assert not train.may_flip
    rows = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in rows for image in test.images), "the splits share no image"


def test_digits_fill_the_range_and_the_shape() -> None:
    grown = load_data("digits", split="test", input_shape=RGB, limit=40)
    assert grown.images.shape == (40, 3, 32, 32)
    assert grown.images.dtype == torch.uint8
    assert int(grown.images.max()) > 240
    assert torch.equal(grown.images[:, 0], grown.images[:, 2])
    assert grown.labels.bincount().tolist() == [4] * 10


# -- common options ----------------------------------------------------------------------------------------------------
@given(labels=st.lists(st.integers(-1, 4), min_size=1, max_size=60), count=st.integers(1, 60))
def test_a_limit_takes_the_classes_in_turn(labels: list[int], count: int) -> None:
    values = torch.tensor(labels)
    chosen = balanced(values, count)
    assert len(chosen) == min(count, len(labels))
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    taken = [int((values[chosen] == label).sum()) for label in set(labels)]
    all_of = [labels.count(label) for label in set(labels)]
    most = max(taken)
    assert all(got in (most, most - 1) or got == available for got, available in zip(taken, all_of, strict=True))


def test_default_and_given_normalisation() -> None:
    rgb = load_data("digits", split="test", input_shape=RGB, limit=2, mean=(0, 0.5, 1), std=(1, 2, 4))
    assert (rgb.mean, rgb.std) == ((0.0, 0.5, 1.0), (1.0, 2.0, 4.0))
    grey = load_data("digits", split="test", input_shape=(1, 8, 8), limit=2)
    assert (grey.mean, grey.std) == ((0.5,), (0.5,))
    values = normalised(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), grey)
    assert values.flatten().tolist() == pytest.approx([-1, 1])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mean": (0.5,)}, "3 values"),
        ({"std": (1, 1, 0)}, "above 0"),
        ({"limit": 0}, "at least 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], expected: str) -> None:
    assert expected in refusal("digits", **options)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("digit", "did you mean digits"),
        ("cifar10", "cifar10:DIR"),
        ("imagefolder:", "imagefolder:DIR"),
        ("imagefolder:/nowhere/at/all", "no such folder"),
        ("cifar10:/nowhere/at/all", "has neither data_batch_1.bin nor data_batch_1"),
        ("nowhere.py:load", "no such file"),
        ("nowhere.py", "path/to/file.py:factory"),
    ],
)
def test_a_source_that_is_unknown_or_missing(spec: str, expected: str) -> None:
    assert expected in refusal(spec)


def test_labels_must_fit_the_network() -> None:
    data = dataset(torch.zeros(3, 1, 2, 2), torch.tensor([0, 11, 3]))
    check_labels(data, 12)
    with pytest.raises(InputError, match=r"labels 0..11, and the network has 10 classes"):
        check_labels(data, 10)
    with pytest.raises(InputError, match=r"labels -1..3"):
        check_labels(dataset(torch.zeros(2, 1, 2, 2), torch.tensor([-1, 3])), 10)


# -- image folders -----------------------------------------------------------------------------------------------------
def write_images(
    folder: Path, colours: dict[str, list[int]], size: tuple[int, int] = (32, 32), suffix: str = ".png"
) -> None:
    for name, greys in colours.items():
        (folder / name).mkdir(parents=True)
        for number, grey in enumerate(greys):
            Image.new("RGB", size, (grey, 0, 255 - grey)).save(folder / name / f"{number:03d}{suffix}")


def test_an_image_folder_with_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"dog": [10, 20], "cat": [30], "emu": [40]})
    write_images(tmp_path / "val", {"emu": [50, 60], "dog": [70]})
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    train = load_data(f"imagefolder:{tmp_path}", split="train", input_shape=RGB)
    test = load_data(f"imagefolder:{tmp_path}", split="test", input_shape=RGB)
    assert train.classes == test.classes == ("cat", "dog", "emu")
    assert train.labels.tolist() == [0, 1, 1, 2]
    assert train.images[:, 0, 0, 0].tolist() == [30, 10, 20, 40]
    assert train.images[0, :, 5, 5].tolist() == [30, 0, 225]
    assert test.labels.tolist() == [1, 2, 2], "numbered as in training although a class is absent"
    assert (train.mean, train.std, train.may_flip) == (RGB_MEAN, RGB_STD, True)


def test_of_class_folders_without_splits_every_tenth_image_tests_and_the_others_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, {"a": list(range(21)), "b": [90, 91]}, size=(4, 4))
    with shown():
        test = load_data(f"imagefolder:{tmp_path}", split="test", input_shape=(3, 4, 4))
        train = load_data(f"imagefolder:{tmp_path}", split="train", input_shape=(3, 4, 4))
    assert test.images[:, 0, 0, 0].tolist() == [0, 10, 20, 90]
    assert train.images[:, 0, 0, 0].tolist() == [*range(1, 10), *range(11, 20), 91]
    assert (test.labels.tolist(), train.labels.tolist()) == ([0, 0, 0, 1], [0] * 18 + [1])
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("every 10th image of each class, by name, is held out to test") == 1
    (tmp_path / "b" / "001.png").unlink()
    assert "b: has one image, which is held out to test" in refusal(f"imagefolder:{tmp_path}", input_shape=(3, 4, 4))


def test_images_of_other_sizes_are_cropped_to_the_aspect_and_resized(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200  # the middle third is what is left of it
    folder = tmp_path / "test" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(wide).save(folder / "wide.png")
    Image.fromarray(np.full((64, 64), 90, dtype=np.uint8)).save(folder / "zgrey.png")
    data = load_data(f"imagefolder:{tmp_path}", split="test", input_shape=(3, 16, 16))
    assert data.images.shape == (2, 3, 16, 16)
    assert (data.images[0, :, :, 1:-1] == 200).all()  # the outermost columns blend with what was cut off
    assert (data.images[1] == 90).all(), "grey files become RGB"
    grey = load_data(f"imagefolder:{tmp_path}", split="test", input_shape=(1, 16, 16))
    assert grey.images.shape == (2, 1, 16, 16)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grey_images_are_scaled_to_8_bits(tmp_path: Path, suffix: str, channels: int) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (tmp_path / "a").mkdir()
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "a" / f"deep{suffix}")
    data = load_data(f"imagefolder:{tmp_path}", split="test", input_shape=(channels, 16, 16))
    assert np.array_equal(data.images.numpy(), np.broadcast_to(levels, (1, channels, 16, 16)))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_images_of_an_unknown_range_are_not_read(tmp_path: Path, kind: type) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(np.full((4, 4), 1000, dtype=kind)).save(tmp_path / "train" / "a" / "x.tif")
    assert "1 of 1 images cannot be read: a/x.tif" in refusal(f"imagefolder:{tmp_path}")


def test_up_to_a_hundredth_of_unreadable_images_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = tmp_path / "train"
    write_images(train, {"a": list(range(100)), "b": list(range(100))}, size=(4, 4))
    (train / "a" / "007.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    short = (train / "b" / "003.png").read_bytes()
    (train / "b" / "003.png").write_bytes(short[: len(short) // 2])
    with shown():
        data = load_data(f"imagefolder:{tmp_path}", split="train", input_shape=(3, 4, 4))
    assert len(data) == 198
    assert data.images[7, 0, 0, 0] == 8
    said = capsys.readouterr().err
    assert "007.png" in said
    assert "left out 2 of 200" in said
    (train / "a" / "050.png").write_text("")
    text = refusal(f"imagefolder:{tmp_path}", input_shape=(3, 4, 4))
    assert "3 of 200 images cannot be read" in text
    assert "050.png" in text


def test_a_limit_reads_only_what_it_keeps(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": [0, 0, 0], "b": [0, 0, 0]}, size=(4, 4))
    (tmp_path / "train" / "b" / "002.png").write_text("unreadable, but not among the first two")
    data = load_data(f"imagefolder:{tmp_path}", split="train", input_shape=(3, 4, 4), limit=4)
    assert data.labels.tolist() == [0, 0, 1, 1]


def test_image_folders_that_hold_nothing(tmp_path: Path) -> None:
    spec = f"imagefolder:{tmp_path}"
    assert "no class folders" in refusal(spec)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    assert "cat: has no images" in refusal(spec)
    write_images(tmp_path / "train", {"dog": [1]})
    assert "cat: has no images" in refusal(spec)
    assert "has no test folder" in refusal(spec, split="test")
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "cat" / "x.jpg")
    assert "takes 2 channels" in refusal(spec, input_shape=(2, 4, 4))


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, {"a": [1, 2]}, size=(4, 4))
    monkeypatch.setattr(
        "edgeprune.datasets.sources.psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000})
    )
    assert "of memory" in refusal(f"imagefolder:{tmp_path}")


# -- CIFAR-10's binary version -----------------------------------------------------------------------------------------
def write_cifar(folder: Path, per_file: int = 10) -> np.ndarray:
    records = np.random.default_rng(0).integers(0, 256, (6 * per_file, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(6 * per_file) % 10
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]
    for name, part in zip(names, np.split(records, 6), strict=True):
        part.tofile(folder / name)
    return records


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10_binary_files(tmp_path: Path, inner: str) -> None:
    records = write_cifar(tmp_path / inner)
    train = load_data(f"cifar10:{tmp_path}", split="train", input_shape=RGB)
    test = load_data(f"cifar10:{tmp_path}", split="test", input_shape=RGB)
    assert (len(train), len(test)) == (50, 10)
    assert train.classes[3] == "cat"
    assert train.labels[13] == 3
    assert train.images[13, 2, 4, 7] == records[13, 1 + 2 * 1024 + 4 * 32 + 7]
    assert np.array_equal(test.images.numpy().reshape(10, -1), records[50:, 1:])
    assert load_data(f"cifar10:{tmp_path}", split="train", input_shape=(3, 16, 16), limit=7).images.shape == (
        7,
        3,
        16,
        16,
    )


def test_damaged_cifar10_is_refused(tmp_path: Path) -> None:
    spec = f"cifar10:{tmp_path}"
    write_cifar(tmp_path)
    assert "takes 1 channels" in refusal(spec, input_shape=(1, 32, 32))
    path = tmp_path / "data_batch_3.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    assert "multiple of 3073" in refusal(spec)
    path.write_bytes(b"\x0c" + content[1:])
    assert "label 12" in refusal(spec)
    path.unlink()
    assert "data_batch_3.bin" in refusal(spec)


# -- CIFAR-10's Python version -----------------------------------------------------------------------------------------
def python_2_pickle(labels: list[int], pixels: np.ndarray) -> bytes:
    """A batch as Python 2 and the NumPy of its time wrote it: protocol 2, byte strings, numpy.core.multiarray."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    shape = number(len(pixels)) + number(pixels.shape[1]) + b"\x86"
    kind = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    kind += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    array += b"(" + number(1) + shape + kind + b"\x89" + text(pixels.tobytes()) + b"tb"
    return (
        b"\x80\x02}(" + text(b"batch_label") + text(b"testing batch 1 of 1")
        + text(b"labels") + b"](" + b"".join(map(number, labels)) + b"e"
        + text(b"data") + array + text(b"filenames") + b"](" + text(b"a.png") * len(labels) + b"eu."
    )  # fmt: skip


def write_python_cifar(folder: Path, write: Callable[[list[int], np.ndarray], bytes]) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    records = np.random.default_rng(0).integers(0, 256, (30, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(30) % 10
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        part = records[5 * number : 5 * number + 5]
        (folder / name).write_bytes(write(part[:, 0].tolist(), part[:, 1:]))
    return records


def python_3_pickle(labels: list[int], pixels: np.ndarray) -> bytes:
    return pickle.dumps({b"labels": labels, b"data": np.ascontiguousarray(pixels)}, protocol=2)


@pytest.mark.parametrize("write", [python_2_pickle, python_3_pickle])
@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar10_python_batches(tmp_path: Path, inner: str, write: Callable[[list[int], np.ndarray], bytes]) -> None:
    records = write_python_cifar(tmp_path / inner, write)
    train = load_data(f"cifar10:{tmp_path}", split="train", input_shape=RGB)
    test = load_data(f"cifar10:{tmp_path}", split="test", input_shape=RGB)
    assert (len(train), len(test)) == (25, 5)
    assert np.array_equal(train.images.numpy().reshape(25, -1), records[:25, 1:])
    assert train.labels.tolist() == records[:25, 0].tolist()
    assert np.array_equal(test.images.numpy().reshape(5, -1), records[25:, 1:])


def test_the_pickle_is_one_that_python_2_would_read() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    loaded = pickle.loads(python_2_pickle([3, 4], pixels), encoding="bytes")  # noqa: S301
    assert np.array_equal(loaded[b"data"], pixels)
    assert loaded[b"labels"] == [3, 4]


def test_code_in_a_pickled_batch_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {marker}",)

    class EvalInside:
        def __reduce__(self) -> tuple[object, ...]:
            return eval, (f"open({str(marker)!r}, 'w')",)

    write_python_cifar(tmp_path, python_2_pickle)
    for evil in (Evil(), {b"labels": [1], b"data": EvalInside()}, [np.zeros(2, dtype=object), Evil()]):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            (tmp_path / "test_batch").write_bytes(pickle.dumps(evil, protocol=protocol))
            text = refusal(f"cifar10:{tmp_path}", split="test")
            assert "test_batch" in text
            assert "never loaded" in text or "no sound batch" in text
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        b"\x80\x02N.",
        b"\x80\x02r\xff\xff\xff\xff",  # would reserve gigabytes for four billion remembered objects
        b"\x80\x02T\xff\xff\xff\x7fabc.",
        pickle.dumps({b"labels": [1, 2]}),
        pickle.dumps({b"labels": [1], b"data": b"x" * 3072}),
        python_2_pickle([1, 2], np.zeros((3, 3072), dtype=np.uint8)),
        python_2_pickle([1], np.zeros((1, 100), dtype=np.uint8)),
        python_2_pickle([1], np.zeros((1, 3072), dtype=np.uint8))[:-200],
        python_3_pickle([1], np.zeros((1, 3072), dtype=np.float64)),
        python_3_pickle([1], np.full((1, 3072), None)),
        pickle.dumps({b"labels": b"\x01", b"data": np.zeros((1, 3072), dtype=np.uint8)}, protocol=3),
        *(
            pickle.dumps({b"labels": labels, b"data": np.zeros((1, 3072), dtype=np.uint8)}, protocol=2)
            for labels in ({0: 1}, [True], [-1], [10**600], ["1"], None, 1)
        ),
    ],
)
def test_pickles_that_are_no_sound_batches_are_refused(tmp_path: Path, content: bytes) -> None:
    write_python_cifar(tmp_path, python_2_pickle)
    (tmp_path / "test_batch").write_bytes(content)
    assert "no sound batch" in refusal(f"cifar10:{tmp_path}", split="test")


def shared_tuples(depth: int) -> bytes:
    """Opcodes for ((x, x), (x, x)), ...: 2**depth elements when written out, some bytes each level."""
    return b")" + b"".join(b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86" for level in range(depth))


LATIN1 = b"c_codecs\nencode\n"
LONG_TEXT = b"X" + struct.pack("<i", 1 << 20) + b"a" * (1 << 20) + b"X\x06\0\0\0latin1\x86q\x01"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b"abc.", id="a bytearray of 8 GB"),
        pytest.param(b"\x80\x02}" + shared_tuples(60) + b"K\0s.", id="a key"),
        pytest.param(b"\x80\x02}(" + shared_tuples(60) + b"K\0u.", id="a key of several"),
        pytest.param(b"\x80\x02" + LATIN1 + b"X\x01\0\0\0x" + shared_tuples(60) + b"\x86R.", id="an encoding"),
        pytest.param(b"\x80\x02" + shared_tuples(60) + b"K\0R.", id="a function"),
        pytest.param(b"\x80\x02" + shared_tuples(60) + b"K\0b.", id="a state's owner"),
        pytest.param(
            b"\x80\x02" + LATIN1 + b"q\0" + LONG_TEXT + b"R" + b"h\0h\x01R" * (1 << 13), id="8 GB of encoded text"
        ),
        pytest.param(
            b"\x80\x02cnumpy\nndarray\nq\0(" + b"N" * (1 << 20) + b"tq\x01" + b"h\0h\x01R" * (1 << 10),
            id="8 GB of arguments",
        ),
    ],
)  # fmt: skip
def test_a_small_pickle_cannot_ask_for_endless_memory_or_time(tmp_path: Path, content: bytes) -> None:
    write_python_cifar(tmp_path, python_2_pickle)
    (tmp_path / "test_batch").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = refusal(f"cifar10:{tmp_path}", split="test")
    assert "no sound batch" in text
    assert len(text) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "KiB"


def test_a_state_is_never_given_to_the_readers_own_functions(tmp_path: Path) -> None:
    write_python_cifar(tmp_path, python_2_pickle)
    (tmp_path / "test_batch").write_bytes(b"\x80\x02" + LATIN1 + b"}U\x01aK\x01sb.")
    assert "state to what is no array" in refusal(f"cifar10:{tmp_path}", split="test")


def test_labels_and_sizes_of_pickled_batches_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_python_cifar(tmp_path, python_2_pickle)
    (tmp_path / "test_batch").write_bytes(python_2_pickle([300], np.zeros((1, 3072), dtype=np.uint8)))
    assert "label 300" in refusal(f"cifar10:{tmp_path}", split="test")
    monkeypatch.setattr("edgeprune.datasets.cifar10._MOST_BYTES", 100)
    assert "at most 100" in refusal(f"cifar10:{tmp_path}", split="test")


# -- the user's own function -------------------------------------------------------------------------------------------
def factory(folder: Path, body: str) -> str:
    path = folder / "my_data.py"
    path.write_text(f"import numpy as np\ndef load(split):\n    {body}\n")
    return f"{path}:load"


def test_a_factory_gives_bytes_or_normalised_floats(tmp_path: Path) -> None:
    spec = factory(tmp_path, "n = 5 if split == 'train' else 2; return np.zeros((n, 3, 4, 4), np.uint8), np.arange(n)")
    data = load_data(spec, split="test", input_shape=(3, 4, 4))
    assert data.labels.tolist() == [0, 1]
    assert data.mean == RGB_MEAN
    spec = factory(tmp_path, "return np.full((2, 1, 4, 4), 7.5), [1, 0]")
    data = load_data(spec, split="train", input_shape=(1, 4, 4))
    images, labels = next(batches(data, 2))
    assert images.dtype == torch.float32
    assert (images == 7.5).all()
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return np.zeros((2, 3, 4, 4))", "expected (images, labels), or a dictionary"),
        ("return None", "returned a NoneType"),
        ("return np.zeros((2, 4, 4, 3)), [0, 1]", "expected (N, 3, 4, 4)"),
        ("return np.zeros((2, 3, 4, 4)), [0]", "one integer for each of the 2"),
        ("return np.zeros((2, 3, 4, 4)), [0.5, 1.0]", "one integer for each"),
        ("return np.full((2, 3, 4, 4), np.nan), [0, 1]", "NaN"),
        ("return np.zeros((2, 3, 4, 4), np.int32), [0, 1]", "type torch.int32"),
        ("return np.zeros((0, 3, 4, 4)), np.zeros(0, int)", "holds no images"),
        ("return 'images', 'labels'", "images are a str"),
        ("raise OSError('disk on fire')", "OSError: disk on fire"),
    ],
)
def test_what_a_factory_does_wrong(tmp_path: Path, body: str, expected: str) -> None:
    assert expected in refusal(factory(tmp_path, body), input_shape=(3, 4, 4))


# -- batches -----------------------------------------------------------------------------------------------------------
@given(count=st.integers(1, 30), size=st.integers(1, 12), shuffled=st.booleans())
def test_every_sample_comes_once_with_its_label(count: int, size: int, shuffled: bool) -> None:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    data = dataset(images, torch.arange(count), mean=(0.0,), std=(1 / 255,))
    generator = torch.Generator().manual_seed(1) if shuffled else None
    parts = list(batches(data, size, shuffle=generator))
    seen = torch.cat([labels for _, labels in parts])
    assert sorted(seen.tolist()) == list(range(count))
    assert shuffled or seen.tolist() == list(range(count))
    assert torch.allclose(torch.cat([x for x, _ in parts])[:, 0, 0, 0], seen.float(), atol=1e-3)
    assert all(len(labels) == size for _, labels in parts[:-1])


def test_normalisation_is_the_one_of_torchvision() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    from torchvision.transforms.functional import convert_image_dtype, normalize

    expected = normalize(convert_image_dtype(images), list(RGB_MEAN), list(RGB_STD))
    assert torch.allclose(normalised(images, dataset(images, mean=RGB_MEAN, std=RGB_STD)), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_reading_batches_does_not_change_the_data(dtype: torch.dtype) -> None:
    images = torch.full((4, 1, 8, 8), 3).to(dtype)
    data = dataset(images, mean=(0.5,), std=(0.2,))
    first, second = next(batches(data, 4)), next(batches(data, 4))
    assert torch.equal(first[0], second[0])
    next(batches(data, 4, shuffle=torch.Generator(), augment=True))
    assert (images == 3).all()


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000), flip=st.booleans(), height=st.sampled_from([4, 8, 32]), width=st.sampled_from([6, 32])
)
def test_augmentation_shifts_each_image_as_a_whole_and_mirrors_it_only_if_asked(
    seed: int, flip: bool, height: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (4, 2, height, width), dtype=torch.uint8, generator=generator)
    changed = augmented(images, generator, flip=flip)
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    margin = max(height // 8, 1)
    for before, after in zip(images, changed, strict=True):
        padded = torch.nn.functional.pad(before, (margin,) * 4)
        windows = [
            padded[:, top : top + height, left : left + width]
            for top in range(2 * margin + 1)
            for left in range(2 * margin + 1)
        ]
        allowed = windows + ([w.flip(2) for w in windows] if flip else [])
        assert any(torch.equal(after, window) for window in allowed)


def test_augmentation_mirrors_about_half_and_differs_between_images() -> None:
    images = torch.arange(8, dtype=torch.uint8).expand(400, 1, 8, 8) + 1
    changed = augmented(images.contiguous(), torch.Generator().manual_seed(0), flip=True)
    rising = changed[:, 0, 4, 5] > changed[:, 0, 4, 3]
    assert 150 < int(rising.sum()) < 250
    assert len({image.numpy().tobytes() for image in changed}) > 10


def test_augmentation_without_a_generator_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="generator"):
        next(batches(dataset(torch.zeros(2, 1, 2, 2)), 1, augment=True))


def test_the_list_of_sources_is_what_load_data_knows() -> None:
    assert names.SOURCES[0] == "digits"
    assert "imagefolder:DIR" in refusal("nothing like it")


# -- real images -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def some_real_images(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 40 test images of each class, in the archive's order; the test images come first or last as they may."""
    folder = tmp_path_factory.mktemp("cifar")
    taken: dict[str, int] = {}
    with tarfile.open(data_dir / "cifar10_jpeg.tar.xz") as archive:
        for member in archive:
            part, _, rest = member.name.removeprefix("./").partition("/")
            name = rest.partition("/")[0]
            if part == "test" and member.isfile() and taken.get(name, 0) < 40:
                archive.extract(member, folder, filter="data")
                taken[name] = taken.get(name, 0) + 1
            if len(taken) == 10 and min(taken.values()) == 40:
                break
    return folder


def test_a_public_checkpoint_has_its_accuracy_on_real_images(data_dir: Path, some_real_images: Path) -> None:
    data = load_data(f"imagefolder:{some_real_images}", split="test", input_shape=RGB)
    model = build("resnet20").model
    load_into(model, read_state_dict(data_dir / "checkpoints" / "resnet20_cifar10jpeg.pt"), where="resnet20")
    assert len(data) == 400
    assert evaluate(model, data).top1 > 83  # 87.92 on all 10,000
