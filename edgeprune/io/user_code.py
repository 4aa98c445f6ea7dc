"""The user's own Python: `path/to/file.py:factory`, for models and for data."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeprune.errors import InputError, first_line, unknown_name

# What a user's code may raise is not ours to know; exit() in a script must not end the program without a word.
_ANY_FAULT = (Exception, SystemExit)


@dataclass(frozen=True)
class Factory:
    """A function of the user's file, and the module that the file became."""

    spec: str
    function: Callable[..., Any]
    module: ModuleType

    def call(self, *arguments: object, options: Mapping[str, object] | None = None) -> Any:
        """Call it with `arguments`, and with those `options` that it has a parameter for; InputError if it raises."""
        accepted = {name: value for name, value in (options or {}).items() if name in self._parameters()}
        with self.running("the factory"):
            return self.function(*arguments, **accepted)

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        """For calls of what the file defines: what it raises becomes an InputError that names the file and the line."""
        with _folder_on_path(self.module):
            try:
                yield
            except _ANY_FAULT as error:
                raise raised(what, error, where=self.spec, file=str(self.module.__file__)) from error

    def _parameters(self) -> tuple[str, ...]:
        try:
            return tuple(inspect.signature(self.function).parameters)
        except (TypeError, ValueError):  # some callables made in C have no signature
            return ()


def is_file_spec(spec: str) -> bool:
    """Whether `spec` means a Python file, whether or not it names a factory in it."""
    return spec.endswith(".py") or ".py:" in spec


def check_factory_file(spec: str, what: str) -> tuple[Path, str]:
    """The file of `path/to/file.py:factory`, and the factory's name; InputError if one is missing. Nothing is run."""
    file_name, _, name = spec.rpartition(":")
    if not file_name or not name or name.endswith(".py"):
        raise InputError(f"{spec!r} names no {what} factory", expected="path/to/file.py:factory")
    path = Path(file_name).expanduser()
    if not path.is_file():
        raise InputError("no such file", where=path, expected=f"a Python file with the {what} factory {name!r}")
    return path, name


def load_factory(spec: str, what: str) -> Factory:
    """Import the file of `path/to/file.py:factory` under a private module name and find the factory in it.

    `what` says what the factory is for ("model", "data") in errors. Raises InputError if the file is missing, cannot be
    imported, or has no such function.
    """
    path, name = check_factory_file(spec, what)
    module = _imported(path)
    function = getattr(module, name, None)
    if function is None:
        defined = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        error = unknown_name(f"{what} factory", name, defined)
        raise InputError(error.what, where=path, expected=error.expected, remedy=error.remedy)
    if not callable(function):
        raise InputError(f"{name!r} is of type {type(function).__name__}", where=path, expected="a function")
    return Factory(spec, function, module)


def _imported(path: Path) -> ModuleType:
    name = f"_edgeprune_user_{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError("cannot be imported", where=path, expected="a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and fx look their module up there
    with _folder_on_path(module):
        try:
            spec.loader.exec_module(module)
        except _ANY_FAULT as error:
            del sys.modules[name]
            raise InputError(f"importing it raised {_described(error)}", where=path) from error
    return module


def raised(what: str, error: BaseException, *, where: str, file: str = "") -> InputError:
    """The error for something of the user's that raised another; with the last line of `file` that was running then."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    line = f", line {lines[-1]}" if lines else ""
    return InputError(f"{what} raised {_described(error)}", where=f"{where}{line}")


@contextmanager
def _folder_on_path(module: ModuleType) -> Iterator[None]:
    """The file's own folder is importable while its code runs, as it is when Python runs the file."""
    folder = str(Path(str(module.__file__)).resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _described(error: BaseException) -> str:
    kind, text = type(error).__name__, first_line(error)
    return kind if text == kind else f"{kind}: {text}"
