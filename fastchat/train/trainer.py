"""transformers' Trainer with an exact loss, an exact evaluation, a batch order that does not depend on the number of
processes, and no files of its own: saving is handed to the checkpoint room.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from fastchat.bars import are_drawn, each
from fastchat.data.batches.packing import SEQ_LENGTHS, PackedDataset, Packs
from fastchat.train.auxiliary import AuxiliaryLoss, find_auxiliary, loss_sums
from fastchat.train.callbacks import EarlyStopping, Guarded
from fastchat.train.engine import Engine
from fastchat.train.head import ChunkedCrossEntropy
from fastchat.train.head_proof import prove_head
from fastchat.train.held_out import HeldOutAnswers
from fastchat.train.lean import LeanTrainer
from fastchat.train.loaders import EpochLoader, WorkerStart
from fastchat.train.loraplus import raise_rates
from fastchat.train.loss import count_tokens, loss_sum
from fastchat.train.memory import MemoryWatch
from fastchat.train.nonfinite import FiniteGuard, nan_if_nonfinite
from fastchat.train.packed import count_every_token
from fastchat.train.progress import ProgressLines
from fastchat.train.sampling import GlobalBatchSampler, WithDummy
from fastchat.train.speed import Speed


class ChatTrainer(LeanTrainer):
    """Trains on dialogues.

    Args, in addition to the Trainer's: `engine`, not attached yet; `write_weights(trainer, folder)` saves what is
    trained, called in every process; `train_lengths` one token count per dialogue, needed to group by length;
    `dummy_token` any valid token id; `memory` measures the run; `head` is the model's chunked head, None where the
    loss is to be computed from all logits;
    `speed` says which layers are checkpointed, and what made them faster; `loraplus_lr_ratio` is the setting.

    answers: what is generated and scored at every evaluation; None for nothing.
    """

    answers: HeldOutAnswers | None = None

    def __init__(
        self,
        *args: Any,
        engine: Engine,
        write_weights: Callable[[ChatTrainer, str], None],
        dummy_token: int,
        memory: MemoryWatch,
        head: ChunkedCrossEntropy | None = None,
        speed: Speed | None = None,
        on_nonfinite: str = "stop",
        train_lengths: Any = None,
        loraplus_lr_ratio: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        for printing in (ProgressCallback, PrinterCallback):  # metric dictionaries; ours prints a line
            self.remove_callback(printing)
        self.lines = ProgressLines(are_drawn())
        self.add_callback(self.lines)
        self.engine, self.loraplus_lr_ratio = engine, loraplus_lr_ratio
        engine.prepare(self)
        handler: Any = self.callback_handler
        handler.callbacks = [
            Guarded(found) if type(found).__module__.startswith("transformers.integrations") else found
            for found in handler.callbacks
        ]
        self.memory = memory
        self.add_callback(memory)
        self.write_weights, self.dummy_token, self.train_lengths = write_weights, dummy_token, train_lengths
        self.head, self.speed = head, speed or Speed()
        self.auxiliary: AuxiliaryLoss | None = None
        # Of this process, since the last log row; the loss stays on the device, so that no step waits for it.
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.args.device)
        self._added_sum = self._loss_sum.clone()  # what the model adds to the cross-entropy, a part of the loss
        self._counts = torch.zeros(2, dtype=torch.int64)  # supervised tokens, tokens
        self._run_sums = torch.zeros(3, dtype=torch.float64)  # the whole run, all processes: loss, supervised, tokens
        self._before_step = (self._loss_sum.clone(), self._added_sum.clone(), self._counts.clone())
        patience: int | None = self.args.early_stopping_patience  # pyright: ignore[reportAttributeAccessIssue]
        self.early_stopping = EarlyStopping(patience) if patience else None
        if self.early_stopping is not None:
            self.add_callback(self.early_stopping)
        self.guard = FiniteGuard(on_nonfinite, self.rows_of, scaled=bool(self.args.fp16))
        self._loaders = weakref.WeakSet[EpochLoader]()  # those of evaluations are gone when these end

    def begin_with(self, check: TrainerCallback, claim: TrainerCallback) -> None:
        """The order in which training begins: the last check, the reports elsewhere, which may refuse the run too,
        `claim`, then whatever writes into the output folder."""
        handler: Any = self.callback_handler
        remote = [found for found in handler.callbacks if isinstance(found, Guarded) and not found.in_output_dir]
        others = [found for found in handler.callbacks if found not in remote]
        handler.callbacks = [check, *remote, claim, *others]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self.loraplus_lr_ratio is not None:
            raise_rates(optimizer, self.model, self.loraplus_lr_ratio)
        return optimizer

    # ---- batches ----

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train_dataset, self.train_batches())

    def train_batches(self, rank: int | None = None) -> GlobalBatchSampler:
        """The batches of this process, or of another one."""
        args = self.args
        dataset: Any = self.train_dataset
        return GlobalBatchSampler(
            len(dataset),
            micro=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            world_size=self.engine.world_size,
            rank=args.process_index if rank is None else rank,
            seed=args.seed if args.data_seed is None else args.data_seed,
            order=str(args.train_sampling_strategy),
            lengths=self.train_lengths,
            drop_last=args.dataloader_drop_last,
        )

    def rows_of(self, step: int, rank: int | None = None) -> list[list[int]]:
        """The input rows in each micro-batch of optimizer step `step` (0-based); of this process, or of another."""
        dataset: Any = self.train_dataset
        items = [[dataset[i] for i in micro] for micro in self.train_batches(rank).of_step(step)]
        return [[row for item in micro for row in _rows(item)] for micro in items]

    def dialogues_seen(self) -> int:
        """Dialogues trained so far, over all processes and epochs; with packing those in the packs."""
        packs = _packs(self.train_dataset)
        return self.train_batches().seen_after(self.state.global_step, None if packs is None else packs.sizes)

    def packing(self) -> dict[str, Any] | None:
        """What is packed, by data set; None without packing."""
        packs = {"train": _packs(self.train_dataset), "eval": _packs(self.eval_dataset)}
        return {name: found.describe() for name, found in packs.items() if found is not None} or None

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The evaluation data (or another set) in its own order, each row by one process."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        batches = GlobalBatchSampler(
            len(dataset),
            micro=self.args.per_device_eval_batch_size,
            accumulation=1,
            world_size=self.engine.world_size,
            rank=self.args.process_index,
            seed=0,
            order="sequential",
        )
        return self._loader(dataset, batches)

    def _loader(self, dataset: Any, batches: GlobalBatchSampler) -> DataLoader[Any]:
        args = self.args
        loader = EpochLoader(
            WithDummy(dataset, self.dummy_token),  # pyright: ignore[reportArgumentType]
            batch_sampler=batches,  # pyright: ignore[reportArgumentType]
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context or None,
            worker_init_fn=WorkerStart(args.dataloader_num_workers, args.process_index),
            # Of its own: starting to read, or evaluating, must not move the random numbers that training draws.
            generator=torch.Generator().manual_seed(args.seed),
        )
        self._loaders.add(loader)
        return loader

    def end_workers(self) -> None:
        """Ends the loaders' workers. They mind no signal, so that a Python process that still has some waits for them
        for ever when it exits; and they hold the lock of the token cache."""
        for loader in self._loaders:
            loader.end_workers()

    def end_reports(self) -> None:
        """Closes what `--report_to` has opened: nothing more will be measured."""
        for report in self.callback_handler.callbacks:
            if isinstance(report, Guarded):
                report.close()

    def _prepare_inputs(self, inputs: Any) -> Any:
        """On the device, and without what is only counted."""
        return super()._prepare_inputs({name: tensor for name, tensor in inputs.items() if name != SEQ_LENGTHS})

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """The Trainer counts a mask; packs have lengths instead."""
        counted = {"attention_mask": inputs[SEQ_LENGTHS]} if SEQ_LENGTHS in inputs else {}
        super()._track_num_input_tokens({**inputs, **counted})

    # ---- loss ----

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Once the engine is ready: the loss is compared with the model's own, and the chunked head has to prove
        itself, or is not used."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        model: Any = self.model
        self.speed.limit(model)
        how: dict[str, Any] = {
            "dtype": self.engine.compute_dtype(model.dtype),
            "device": self.args.device,
            "context": self.compute_loss_context_manager,
        }
        self.auxiliary = find_auxiliary(model, self.train_dataset, **how)
        if self.auxiliary is not None:
            count_every_token(self.train_dataset)
        if self.head is not None:
            proven = prove_head(self.head, model, self.train_dataset, auxiliary=self.auxiliary, **how)
            self.head = self.head if proven else None
        return prepared

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Supervised tokens of one optimizer step, over all processes and accumulation steps."""
        self._before_step = (self._loss_sum.clone(), self._added_sum.clone(), self._counts.clone())
        counts = count_tokens(batch_samples)
        self._counts += counts
        return self._total(counts)[0].clamp(min=1)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This process's share of the step's loss, times the number of processes: gradients are averaged over them."""
        assert not return_outputs, "the logits are not kept"
        smoothing, chunked = self.args.label_smoothing_factor, self.head is not None
        if self.auxiliary is None:
            total = loss_sum(model, inputs, smoothing, chunked=chunked)
        else:
            total, added = loss_sums(model, inputs, self.auxiliary, smoothing, chunked=chunked)
            total = total + added
            self._added_sum += added.detach()
        self._loss_sum += total.detach()
        self.guard.note(total)
        return nan_if_nonfinite(total) * self.engine.world_size / num_items_in_batch

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one micro-batch; the loss is already divided for the whole step."""
        self.into_training_mode(model)
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):  # schedule-free optimizers have two modes
            optimizer.train()
        inputs = self._prepare_inputs(inputs)
        self.memory.see(inputs["input_ids"])
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss, **self.engine.backward_arguments)
        return loss.detach()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The Trainer asks right before the optimizer's step (DeepSpeed has made it, unless the norm was bad)."""
        norm: Any = self.engine.norm(super()._get_grad_norm(model, grad_norm))
        good = self.guard.may_step(float(norm), self.state.global_step)
        if not good:
            self._loss_sum, self._added_sum, self._counts = self._before_step
        self.engine.before_step(good)
        return norm

    def _total(self, numbers: torch.Tensor, by: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> torch.Tensor:
        """The sum (or what `by` says) over all processes, on the CPU."""
        if not dist.is_initialized() or self.engine.world_size == 1:
            return numbers
        summed = numbers.to(self.args.device)
        dist.all_reduce(summed, op=by)
        return summed.cpu()

    # ---- what is logged ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replaces the Trainer's mean of means by the exact mean over supervised tokens, and adds the token counts."""
        if "loss" in logs:
            loss, supervised, tokens, added = self._drain()
            self._run_sums += torch.tensor([loss, supervised, tokens], dtype=torch.float64)
            logs["loss"] = loss / supervised if supervised else float("nan")
            if self.auxiliary is not None:
                logs["aux_loss"] = added / supervised if supervised else float("nan")
            logs["num_tokens"], logs["num_supervised_tokens"] = int(tokens), int(supervised)
            if self.lines.stepping > 0:
                logs["tokens_per_second"] = tokens / self.lines.stepping
        if "loss" in logs or "train_loss" in logs:
            logs |= self.memory.agree(self._total(torch.tensor(self.memory.mine()), dist.ReduceOp.MAX).tolist())
        if "train_loss" in logs:
            self._run_sums += torch.tensor(self._drain()[:3], dtype=torch.float64)
            loss, supervised, _ = self._run_sums.tolist()
            logs["train_loss"] = loss / supervised if supervised else float("nan")
            logs.pop("total_flos", None)
        super().log(logs, start_time)

    def _drain(self) -> list[float]:
        """[loss sum, supervised tokens, tokens, sum of what the model added], all processes, since the last call."""
        sums = torch.cat([self._loss_sum.cpu()[None], self._counts.double(), self._added_sum.cpu()[None]])
        self._loss_sum.zero_()
        self._added_sum.zero_()
        self._counts.zero_()
        return self._total(sums).tolist()

    # ---- what a checkpoint keeps ----

    def progress(self) -> dict[str, Any]:
        counted = {"loss": self._loss_sum.cpu(), "counts": self._counts.clone(), "run": self._run_sums.clone()}
        counted["added"] = self._added_sum.cpu()
        if self.early_stopping is not None:
            counted["worse_in_a_row"] = self.early_stopping.early_stopping_patience_counter
        return counted

    def set_progress(self, progress: dict[str, Any]) -> None:
        self._loss_sum = progress["loss"].to(self.args.device)
        self._added_sum = progress.get("added", torch.zeros_like(self._added_sum)).to(self.args.device)
        self._counts, self._run_sums = progress["counts"].clone(), progress["run"].clone()
        if self.early_stopping is not None:
            self.early_stopping.early_stopping_patience_counter = progress.get("worse_in_a_row", 0)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """One epoch; nothing where the run had already stopped early when its checkpoint was written."""
        if self.early_stopping is not None and self.early_stopping.exhausted:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def tokens_seen(self) -> tuple[int, int]:
        """(supervised tokens, tokens) trained so far, over all processes. A collective operation."""
        supervised, tokens = self._total(self._counts.clone()).tolist()
        return int(supervised + self._run_sums[1]), int(tokens + self._run_sums[2])

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: the Trainer's formula counts padding and ignores what is frozen."""
        return 0

    # ---- evaluation ----

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """eval_loss = summed loss / supervised tokens of the whole set, whatever the batches and processes."""
        model: Any = self.model
        model.eval()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "eval", None)):
            optimizer.eval()
        handler: Any = self.callback_handler
        handler.eval_dataloader = dataloader  # the progress bar asks for its length
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in each(dataloader, "evaluating", "batch"):
            self.go_on()
            sums[1] += count_tokens([batch])[0]
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = loss_sum(model, self._prepare_inputs(batch), chunked=self.head is not None)
                sums[0] += loss.double().cpu()
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        loss, supervised = self._total(sums).tolist()
        metrics = {
            f"{metric_key_prefix}_loss": loss / supervised if supervised else float("nan"),
            f"{metric_key_prefix}_num_supervised_tokens": int(supervised),
        }
        if self.answers is not None:
            metrics |= {f"{metric_key_prefix}_{name}": value for name, value in self.answers.measure(self).items()}
        size = len(dataloader.dataset)  # pyright: ignore[reportArgumentType]
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=size)  # pyright: ignore

    # ---- saving ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Only the checkpoint room writes weights; no `training_args.bin`."""
        self.write_weights(self, output_dir or str(self.args.output_dir))

    # ---- what was actually used ----

    def optimizer_name(self) -> str:
        """Class of the optimizer that makes the steps, without its wrappers."""
        optimizer: Any = self.optimizer
        seen = set()
        while id(optimizer) not in seen:
            seen.add(id(optimizer))
            optimizer = vars(optimizer).get("optimizer", optimizer)
        return type(optimizer).__name__


def _packs(dataset: Any) -> Packs | None:
    return dataset.packs if isinstance(dataset, PackedDataset) else None


def _rows(item: dict[str, Any]) -> list[int]:
    """The input rows of a dialogue or a pack."""
    index = item["index"]
    return index if isinstance(index, list) else [index]
