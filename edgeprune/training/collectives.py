"""What the ranks of a run tell each other, through torch.distributed: gloo between CPUs, NCCL between GPUs.

Every rank calls each of these functions, in the same order. Alone (`Ranks`), they do nothing, and no process group is
made. Between the ranks every step of a run is the same but for the images: each computes the gradient of its piece of
the batch, and what is added up has the same bits everywhere, so that weights, momentum and what methods decide stay the
same as long as all compute alike; `require_same` holds them to it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edgeprune.errors import InputError, Interrupted, first_line
from edgeprune.training.ranks import Ranks

MEETING_SECONDS = 1800.0
"""That a rank waits for the others before the first step."""
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
_DIGEST_BYTES = 32


def add_up_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by the sum over all ranks. A rank without one counts as zero; where no rank has one, there
    is none."""
    if Ranks.here().is_alone:
        return
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    present = torch.tensor([p.grad is not None for p in parameters])
    flat = torch.cat([*(gradient.flatten() for gradient in own), present.to(own[0])])
    _run(dist.all_reduce, flat)
    *sums, counts = torch.split(flat, [*(p.numel() for p in parameters), len(parameters)])
    used = [True] * len(parameters) if present.all() else counts.bool().tolist()
    for parameter, gradient, total, is_used in zip(parameters, own, sums, used, strict=True):
        parameter.grad = gradient.copy_(total.view(gradient.shape)) if is_used else None


def added_up(values: Sequence[float]) -> list[float]:
    """The sum of each of the values over all ranks."""
    if Ranks.here().is_alone:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    _run(dist.all_reduce, sums)
    return list(sums.tolist())


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all ranks, in place."""
    ranks = Ranks.here()
    if ranks.is_alone:
        return
    for tensor in tensors:
        _run(dist.all_reduce, tensor.detach())
        tensor.detach().div_(ranks.size)


def settle_buffers(model: nn.Module) -> None:
    """Make what the forward passes of an epoch left in a model the same everywhere: BatchNorm's running mean and
    variance, into which each rank put those of its own pieces, become their means over the ranks; all other buffers are
    those of the first.

    They are moving averages, in which every batch has a weight, so that averaging them once is averaging every batch.
    """
    if Ranks.here().is_alone:
        return
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    statistics = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var) if tensor is not None]
    average(statistics)
    places = {tensor.data_ptr() for tensor in statistics}
    for buffer in model.buffers():
        if buffer.numel() and buffer.data_ptr() not in places:
            content = buffer.contiguous().flatten().view(torch.uint8)  # gloo does not know every type
            _run(dist.broadcast, content, 0)
            buffer.copy_(content.view(buffer.dtype).view(buffer.shape))


def of_first(data: Callable[[], bytes]) -> bytes:
    """What `data`, which only the first rank calls, gives there."""
    ranks = Ranks.here()
    if ranks.is_alone:
        return data()
    given = data() if ranks.is_first else b""
    length = torch.tensor([len(given)])
    _run(dist.broadcast, length, 0)
    content = torch.frombuffer(bytearray(given), dtype=torch.uint8) if given else torch.zeros(int(length)).byte()
    if len(content):
        _run(dist.broadcast, content, 0)
    return content.numpy().tobytes()


def require_same(described: Mapping[str, bytes | Tensor], *, what: str, remedy: str) -> None:
    """InputError, on all ranks, if any has other contents under one of these names than the first."""
    ranks = Ranks.here()
    if ranks.is_alone:
        return
    digests = [hashlib.sha256(_bytes(described[name])).digest() for name in sorted(described)]
    names = hashlib.sha256("\n".join(sorted(described)).encode()).digest()
    # (names, 32): of one length on every rank, or they have already gone different ways
    own = torch.frombuffer(bytearray(b"".join([names, *digests])), dtype=torch.uint8).view(-1, _DIGEST_BYTES)
    everyone = [torch.empty_like(own) for _ in range(ranks.size)]
    _run(dist.all_gather, everyone, own)
    for rank, theirs in enumerate(everyone):
        differs = (theirs != everyone[0]).any(1).tolist()
        if any(differs):
            found = ["the names of its parts", *sorted(described)][differs.index(True)]
            raise InputError(
                f"{what} of process {rank} are not those of process 0: {found}", where="training",
                expected="the same in all processes", remedy=remedy,
            )  # fmt: skip


def leave_to_first() -> None:
    """The end of all ranks but the first (SystemExit with code 0): what comes next is done once."""
    ranks = Ranks.here()
    if ranks.is_alone:
        return
    if dist.is_initialized():
        dist.destroy_process_group()
    if not ranks.is_first:
        raise SystemExit(0)


def _run(collective: Callable[..., object], *arguments: object) -> None:
    """Call one of torch.distributed's functions; `Interrupted` where that fails, as it does when a rank is gone."""
    _meet()
    with _peers():
        collective(*arguments)


def _meet() -> None:
    """Make the process group, once all ranks are there."""
    if dist.is_initialized():
        return
    from torch.distributed.rendezvous import rendezvous  # builds without torchrun lack it

    ranks = Ranks.here()
    if ranks.on_one_machine:  # by default gloo and NCCL listen where the machine's name leads
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, _LOOPBACK)
    has_gpu = torch.cuda.is_available() and dist.is_nccl_available()
    with _peers():
        store, _, _ = next(rendezvous("env://", ranks.rank, ranks.size))
        store.set(f"edgeprune/{ranks.rank}", "here")
        everyone = [f"edgeprune/{rank}" for rank in range(ranks.size)]
        until = time.monotonic() + MEETING_SECONDS
        while not store.check(everyone):  # in Python, where a signal is heard
            if time.monotonic() > until:
                raise RuntimeError(f"not all came within {MEETING_SECONDS:.0f} s")
            time.sleep(0.05)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if has_gpu else "gloo", store=store, rank=ranks.rank, world_size=ranks.size
        )


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        cause = re.sub(r"^\[.*?\] ", "", first_line(error)).partition(". ")[0]  # gloo begins with a line of its source
        raise Interrupted(f"another process of the run ended or cannot be reached ({cause})") from error


def _bytes(content: bytes | Tensor) -> bytes | memoryview:
    if isinstance(content, bytes):
        return content
    return content.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
