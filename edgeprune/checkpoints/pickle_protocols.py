"""A pickle of protocol 3 to 5, written again in protocol 2, which is the one that torch's safe unpickler knows.

Nothing is built or called here: instructions are replaced by others that mean the same. Which classes and functions
the pickle may name is decided by the unpickler that reads the result.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile

_TEXT = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
_BYTES = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8")
_PUTS = ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_REPLACED = {"PROTO": b"\x80\x02", "FRAME": b"", "EMPTY_SET": b"]", "ADDITEMS": b"e", "FROZENSET": b"t", "LONG4": b"N"}
"""Sets become lists, frozen ones tuples, integers of more than 2000 bits None: they are data beside the weights."""


def in_protocol_2(data: bytes) -> bytes:
    """The same pickle in instructions of protocol 2. Raises ValueError where it has one that cannot be replaced."""
    out: list[bytes] = []
    texts: list[str | None] = []  # of each instruction in `out`: the text that it pushes, if it does
    memo: dict[int, str] = {}
    count = 0

    def add(instruction: bytes, text: str | None = None) -> None:
        out.append(instruction)
        texts.append(text)

    instructions = list(pickletools.genops(data))
    ends = [position for _, _, position in instructions[1:]] + [len(data)]
    for (op, argument, start), end in zip(instructions, ends, strict=True):
        start = start or 0
        if op.name in _TEXT:
            add(_text(str(argument)), str(argument))
        elif op.name in _BYTES:
            add(_bytes(bytes(argument or b"")))
        elif op.name in _PUTS:
            place = count if op.name == "MEMOIZE" else int(argument or 0)
            count += 1
            text = texts[-1] if texts else None
            if text is None:
                memo.pop(place, None)
                add(b"r" + struct.pack("<I", place))
            else:
                memo[place] = text  # written out again wherever it is used
        elif op.name in _GETS:
            place = int(argument or 0)
            add(*((_text(memo[place]), memo[place]) if place in memo else (b"j" + struct.pack("<I", place),)))
        elif op.name == "STACK_GLOBAL":
            name, module = texts.pop(), texts.pop()
            del out[-2:]
            add(_global(module, name))
        elif op.name in _REPLACED:
            add(_REPLACED[op.name])
        else:
            add(data[start:end])
    return b"".join(out)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _bytes(content: bytes) -> bytes:
    """As protocol 2 has bytes: a text of as many letters, encoded again by a function that torch allows."""
    return b"c_codecs\nencode\n" + _text(content.decode("latin1")) + _text("latin1") + b"\x86R"


def _global(module: str | None, name: str | None) -> bytes:
    if module is None or name is None or "\n" in module + name:
        raise ValueError("a class whose name is not written out")
    return f"c{module}\n{name}\n".encode()


def as_archive(pickled: bytes, numbers: dict[str, bytes]) -> io.BytesIO:
    """A checkpoint as torch.save writes it, of a pickle and the numbers of its tensors (name -> bytes)."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for name, content in ({"version": b"3\n"} | numbers).items():
            file.writestr(f"archive/{name}", content)
    archive.seek(0)
    return archive


def numbers_in(archive: zipfile.ZipFile, root: str) -> dict[str, bytes]:
    """All that torch needs of an archive beside its pickle. Raises ValueError for a compressed member: torch writes
    none, and it may be a thousand times as large as it looks."""
    found = {}
    for member in archive.infolist():
        name = member.filename.removeprefix(f"{root}/")
        if name in ("version", "byteorder") or name.startswith("data/"):
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed")
            found[name] = archive.read(member)
    return found
