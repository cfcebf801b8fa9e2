"""The data loader of a run: it passes the epoch on to the batches, and its workers stay until the run ends them."""

from __future__ import annotations

import signal
import weakref
from typing import Any

from torch.utils.data import DataLoader
from transformers.trainer_utils import seed_worker


class EpochLoader(DataLoader[Any]):
    """Passes the Trainer's epoch on to the batches, and can end the workers of every pass over the data."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._passes = weakref.WeakSet[Any]()

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]

    def _get_iterator(self) -> Any:
        made = super()._get_iterator()
        self._passes.add(made)
        return made

    def end_workers(self) -> None:
        """Ends the workers, those of a pass that an error left in the middle too: its traceback keeps it alive."""
        for made in self._passes:
            if self.num_workers:
                made._shutdown_workers()
                for worker in made._workers:
                    worker.kill()  # one that hangs; it minds no other signal
        self._iterator = None


class WorkerStart:
    """Seeds a loader's worker, and makes it stay until the training process ends it; a class, because a spawned worker
    has to unpickle it.

    Schedulers and terminals signal every process of a run: were a worker to go at once, the step could not be saved.
    """

    def __init__(self, num_workers: int, rank: int) -> None:
        self.num_workers, self.rank = num_workers, rank

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        seed_worker(worker, num_workers=self.num_workers, rank=self.rank)
