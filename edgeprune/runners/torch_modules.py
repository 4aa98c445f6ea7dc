"""torch as a target: the networks as torch itself runs them, for comparison with deployed runtimes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.runners.base import Array, Feeds, RunOptions
from edgeprune.runners.ort import NodeTime


class TorchRunner:
    """A torch module in eval mode. Sets torch's number of threads until it is closed; close the last made first."""

    def __init__(
        self,
        module: nn.Module,
        input_names: Sequence[str],
        options: RunOptions | None = None,
        *,
        target: str = "torch-cpu",
    ) -> None:
        """`input_names`: the forward function's arguments, in order. InputError for torch-cuda without a GPU."""
        self.options = options or RunOptions()
        self.options.check()
        if target == "torch-cuda" and not torch.cuda.is_available():
            raise InputError("torch finds no GPU", where=f"target {target}", remedy="choose --target torch-cpu")
        self.target = target
        self.input_names = tuple(input_names)
        self.output_names: tuple[str, ...] = ("output",)
        self._device = torch.device("cuda" if target == "torch-cuda" else "cpu")
        self._home = next((p.device for p in module.parameters()), torch.device("cpu"))
        self._was_training = module.training
        self._module: nn.Module | None = module.eval().to(self._device)
        self._threads = torch.get_num_threads()
        torch.set_num_threads(self.options.threads)

    @property
    def provider(self) -> str:
        return f"torch {self._device.type}"

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name, in the computer's memory; InputError if an input is missing or does not fit."""
        values = self._values(feeds)
        try:
            with torch.inference_mode():
                outputs = self._open()(*values)
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            raise InputError(f"torch cannot run the model on this input: {text}") from error
        named = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        self.output_names = tuple(f"output{number or ''}" for number in range(len(named)))
        return {name: value.cpu().numpy() for name, value in zip(self.output_names, named, strict=True)}

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """One run on these inputs, already on the device, until its outputs are there."""
        self.run(feeds)  # what is wrong with the inputs is said here
        module, values = self._open(), self._values(feeds)

        @torch.inference_mode()
        def run() -> object:
            outputs = module(*values)
            self._wait()
            return outputs

        return run

    def close(self) -> None:
        """Give torch its former number of threads back, and the module its former place; a second call does nothing."""
        if self._module is not None:
            self._module.to(self._home).train(self._was_training)
            self._module = None
            torch.set_num_threads(self._threads)

    def original_node(self, name: str) -> str:
        """Layers of the ONNX file have the names of their modules."""
        return name

    def profile_nodes(self, feeds: Feeds, iterations: int, *, warmup: int = 5) -> list[NodeTime]:
        """Mean time a run of every module with weights of its own or without modules in it, in order of execution."""
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
        for name, module in self._open().named_modules():
            # A folded convolution holds its Gather as a sub-module, which runs beside it, not inside.
            if any(True for _ in module.children()) and not any(True for _ in module.parameters(recurse=False)):
                continue

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

    def _values(self, feeds: Feeds) -> list[Tensor]:
        missing = [name for name in self.input_names if name not in feeds]
        if missing or len(feeds) != len(self.input_names):
            raise InputError(
                f"inputs {', '.join(feeds) or 'none'} given", expected=f"inputs {', '.join(self.input_names)}"
            )
        return [torch.from_numpy(np.ascontiguousarray(feeds[name])).to(self._device) for name in self.input_names]
