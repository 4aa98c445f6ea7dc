"""torch as a target: the networks as torch itself runs them, eagerly or compiled, beside deployed runtimes.

FP32 is FP32: on GPUs, TF32 (factors rounded to 11 bits) is off while a runner is open that was not asked for it.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import InputError, first_line
from edgeprune.io.arrays import Array, Feeds
from edgeprune.precision.formats import Precision
from edgeprune.runners.base import NodeTime, RunOptions
from edgeprune.runners.cores import pinned
from edgeprune.runners.gpu import median_ms
from edgeprune.runners.opened import OpenedRunner

_ENOUGH_WORK = 1 << 16
"""Elements for each thread at which torch lets all of them work on one addition."""


class TorchRunner(OpenedRunner):
    """A torch module in eval mode. Sets torch's number of threads until it is closed; close the last made first.

    A compiled one is compiled when it first runs, and again for inputs of another shape. In FP16 a copy is run, which
    takes and gives float32.
    """

    def __init__(
        self,
        module: nn.Module,
        input_names: Sequence[str],
        options: RunOptions | None = None,
        *,
        target: str = "torch-cpu",
        precision: Precision = "fp32",
    ) -> None:
        """`input_names`: the forward function's arguments, in order. InputError for a GPU target without a GPU, and for
        cores that cannot be pinned to."""
        super().__init__(options)
        on_gpu, self._is_compiled = target.endswith("cuda"), "compile" in target
        if on_gpu and not torch.cuda.is_available():
            raise InputError("torch finds no GPU", where=f"target {target}", remedy="choose --target torch-cpu")
        self.target = target
        self.input_names = tuple(input_names)
        self.output_names: tuple[str, ...] = ("output",)
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._half = precision == "fp16"
        self._tf32 = _allowed_tf32() if on_gpu else None
        self._home = next((p.device for p in module.parameters()), torch.device("cpu"))
        self._given, self._was_training = module, module.training
        placed = (copy.deepcopy(module).half() if self._half else module).eval().to(self._device)
        self._module: nn.Module | None = placed
        # Parts that cannot be compiled would run eagerly and still be called compiled: fullgraph refuses them.
        compiled = torch.compile(placed, mode="default", fullgraph=True, dynamic=False) if self._is_compiled else placed
        self._forward: Callable[..., Any] | None = compiled
        self._worker_cores = self.options.pin[1:]
        """For the threads that torch starts in the first run."""
        self._threads = torch.get_num_threads()
        torch.set_num_threads(self.options.threads)
        if on_gpu:
            _allow_tf32(precision == "tf32", precision == "tf32")

    @property
    def provider(self) -> str:
        return f"torch {self._device.type}{', compiled' if self._is_compiled else ''}"

    def providers(self) -> dict[str, int]:
        """See `Runner`: the modules that compute, which all run on one device."""
        return {self.provider: sum(1 for _ in _computing(self._open()))}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name, in the computer's memory; InputError if an input is missing or does not fit."""
        values = self._values(feeds)
        try:
            with pinned(self._worker_cores), torch.inference_mode():
                if self._worker_cores:
                    # Threads inherit the cores of the one that starts them, which the caller pins to a single one.
                    torch.zeros(self.options.threads * _ENOUGH_WORK).add_(1)
                outputs = self._call(values)
        except RuntimeError as error:  # the compiler's errors are of this class, too
            what = "compile the model, or run it" if self._is_compiled else "run the model"
            raise InputError(f"torch cannot {what} on this input: {first_line(error)}") from error
        self._worker_cores = ()
        named = _tensors(outputs)
        self.output_names = tuple(f"output{number or ''}" for number in range(len(named)))
        return {name: value.float().cpu().numpy() for name, value in zip(self.output_names, named, strict=True)}

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """One run on these inputs, already on the device, until its outputs are there."""
        self.run(feeds)  # what is wrong with the inputs is said here
        values = self._values(feeds)

        @torch.inference_mode()
        def run() -> object:
            outputs = self._call(values)
            self._wait()
            return outputs

        return run

    def close(self) -> None:
        """Give torch its former number of threads back, and the module its former place; a second call does nothing."""
        if self._module is not None:
            self._given.to(self._home).train(self._was_training)
            self._module = self._forward = None
            torch.set_num_threads(self._threads)
            if self._tf32 is not None:
                _allow_tf32(*self._tf32)
            if self._is_compiled:
                torch.compiler.reset()  # or what was compiled would stay in memory

    def original_node(self, name: str) -> str:
        """Layers of the ONNX file have the names of their modules."""
        return name

    def profile_nodes(self, feeds: Feeds, iterations: int, *, warmup: int = 5) -> list[NodeTime]:
        """Mean time a run of every module with weights of its own or without modules in it, in order of execution.

        Nothing of a compiled network: its modules are fused into others.
        """
        if self._is_compiled:
            return []
        if iterations < 1:
            raise InputError(f"--iterations {iterations} is out of range", expected="1 or more")
        seconds: dict[tuple[str, str], float] = defaultdict(float)
        for _ in range(warmup):
            self.run(feeds)
        with self._timed(seconds):
            for _ in range(iterations):
                self.run(feeds)
        return [NodeTime(*key, self.provider, total / iterations * 1e3) for key, total in seconds.items()]

    @contextmanager
    def _timed(self, seconds: dict[tuple[str, str], float]) -> Iterator[None]:
        """Add the time inside the modules to `seconds` while the block runs."""
        handles = []
        begun: dict[str, float] = {}
        for name, module in _computing(self._open()):

            def before(_module: nn.Module, _inputs: object, name: str = name) -> None:
                begun[name] = self._now()

            def after(module: nn.Module, _inputs: object, _output: object, name: str = name) -> None:
                seconds[name, type(module).__name__] += self._now() - begun[name]

            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _now(self) -> float:
        self._wait()
        return time.perf_counter()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _open(self) -> nn.Module:
        if self._module is None:
            raise ValueError("the runner is closed")
        return self._module

    def _call(self, values: Sequence[Tensor]) -> Any:
        if self._forward is None:
            raise ValueError("the runner is closed")
        return self._forward(*values)

    def _values(self, feeds: Feeds) -> list[Tensor]:
        missing = [name for name in self.input_names if name not in feeds]
        if missing or len(feeds) != len(self.input_names):
            raise InputError(
                f"inputs {', '.join(feeds) or 'none'} given", expected=f"inputs {', '.join(self.input_names)}"
            )
        values = [torch.from_numpy(np.ascontiguousarray(feeds[name])).to(self._device) for name in self.input_names]
        return [value.half() if self._half and value.is_floating_point() else value for value in values]


class GpuTorchRunner(TorchRunner):
    """A `TorchRunner` whose inputs and outputs stay on the GPU while it is timed, and which tells what copies take."""

    def copy_times(self, feeds: Feeds, iterations: int) -> tuple[float, float]:
        """Median milliseconds of copying the inputs to the GPU, and of copying the outputs back, by this computer's
        clock: from and to ordinary memory."""
        outputs = _tensors(self.prepared(feeds)())

        def copy_in() -> None:
            self._values(feeds)
            self._wait()

        return median_ms(copy_in, iterations), median_ms(lambda: [value.cpu() for value in outputs], iterations)


def _tensors(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _computing(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules with weights of their own or without modules in them, with their names.

    A folded convolution holds its Gather as a sub-module, which runs beside it, not inside.
    """
    for name, part in module.named_modules():
        if any(True for _ in part.parameters(recurse=False)) or not any(True for _ in part.children()):
            yield name, part


def _allowed_tf32() -> tuple[bool, bool]:
    """For products of matrices, and for convolutions. By torch's older switches, which its compiler reads; InputError
    where the newer ones were set, since then these cannot be read."""
    try:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    except RuntimeError as error:
        raise InputError(
            "TF32 was switched by fp32_precision of torch.backends",
            expected="its allow_tf32, or neither",
            remedy="take it out of the model's code: --precision decides here",
        ) from error


def _allow_tf32(matmul: bool, convolution: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
