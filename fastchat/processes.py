"""The processes of one run: the process group, work that one process does for all, and errors raised in all."""

from __future__ import annotations

import copy
import datetime
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fastchat.errors import PeerFailed, UserError
from fastchat.machines import Place, are_several, here

T = TypeVar("T")


_places: list[Place] = []


def start_processes(
    *,
    use_cpu: bool,
    deepspeed: bool,
    alone: bool = False,
    backend: str | None,
    timeout_s: int,
    store: Any = None,
    places: Sequence[Place] = (),
) -> None:
    """Join the process group of the launcher, if there is one. `store`: its key-value store, if the processes have met
    there already; `places`: then all of them, by rank.

    It has to exist before the model: ZeRO-3 partitions weights while they are loaded, and on a CPU transformers would
    start the group too late for that. `alone`: a process without a launcher becomes a group of one.
    """
    if alone and "WORLD_SIZE" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        os.environ.update(environment)
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        return
    if not use_cpu and torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    backend = backend or ("gloo" if use_cpu else "nccl" if torch.cuda.is_available() else None)
    timeout = datetime.timedelta(seconds=timeout_s)
    if not dist.is_initialized():
        _places[:] = places
        more = {} if store is None else {"store": store, "rank": here().rank, "world_size": len(places)}
        dist.init_process_group(backend=backend, timeout=timeout, **more)
    if deepspeed:
        import deepspeed as library

        with _without_inference_kernels():
            library.init_distributed(dist_backend=backend or "gloo", timeout=timeout, auto_mpi_discovery=False)


@contextmanager
def _without_inference_kernels() -> Iterator[None]:
    """Inside the block DeepSpeed does not compile its shared-memory collectives for CPUs.

    Only `inference_all_reduce` uses them. They take a minute to compile and 66 MiB of /dev/shm for each process, which
    are not freed when the run ends; a container has 64 MiB.
    """
    from deepspeed import ops

    name = "__compatible_ops__"  # looked up in all versions, and filled by importing setuptools in some
    found = vars(ops).get(name)
    setattr(ops, name, {})
    try:
        yield
    finally:
        if found is None:
            delattr(ops, name)
        else:
            setattr(ops, name, found)


def rank() -> int:
    """The global rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """The rank on this machine; 0 without a launcher."""
    return max(0, int(os.environ.get("LOCAL_RANK", "0")))


def world_size() -> int:
    """The number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def places() -> list[Place]:
    """Where every process of the run is, by rank."""
    return list(_places) or [here()]


def several_machines() -> bool:
    """Whether the processes of the run are on more than one machine."""
    return are_several(places())


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def gather(mine: T) -> list[T]:
    """The values of all processes, by rank."""
    if not dist.is_initialized():
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def on_all_processes(work: Callable[[], T]) -> T:
    """Run `work` in every process; each gets its own result. The first user error of any process is raised in all.

    After any other error in one process, that process raises it and the others raise PeerFailed: if a process left
    alone, the others would wait for it in a collective operation.
    """
    result: Any = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as met:  # noqa: BLE001 - raised below
        error = met
    told = error if error is None or isinstance(error, UserError) else PeerFailed(f"rank {rank()}: {error}")
    errors = [(isinstance(met, PeerFailed), at, met) for at, met in enumerate(gather(told)) if met is not None]
    if not errors:
        return result
    of_peers_only, at, first = min(errors)
    if error is not None and (of_peers_only or at == rank()):
        raise error
    raise _from_elsewhere(first, at) if error is None else first


def _from_elsewhere(error: UserError | PeerFailed, at: int) -> UserError | PeerFailed:
    """The error of rank `at`, with its host if that is another one: what it names may be different there."""
    if at >= len(_places) or not are_several([_places[at], here()]):
        return error
    error = copy.copy(error)
    error.args = (f"{error} (on {_places[at].host}, rank {at})",)
    return error


def everyone(work: Callable[[], T]) -> list[T]:
    """Run `work` in every process; each gets all results, by rank. Errors as in `on_all_processes`."""
    return gather(on_all_processes(work))


def on_main_process(work: Callable[[], T]) -> T | None:
    """Run `work` on global rank 0 and send its result to all; an error is raised in all, see `on_all_processes`."""
    made: list[Any] = [on_all_processes(work if rank() == 0 else lambda: None)]
    if dist.is_initialized():
        dist.broadcast_object_list(made, src=0)  # sent once, not gathered from all: it may be large
    return made[0]


def on_local_main_process(work: Callable[[], T]) -> T:
    """Run `work` once per machine and send its result to all processes there; an error is raised in all."""
    mine = on_all_processes(work if local_rank() == 0 else lambda: None)
    result: Any = gather(mine)[rank() - local_rank()]
    return result
