"""The block that a run prints before its first step: what is trained, on what, how, for how long, and where it goes.

model      /models/Llama-2-7b-hf: LoRA, 19,988,480 of 6,758,404,096 parameters (0.296 %), nf4
data       320 dialogues, 19,836 tokens, 3,918 of them learned (19.8 %); evaluation: 82 dialogues
template   vicuna_v1.1
batch      16 dialogues = 2 processes x 8 x accumulation 1
engine     ddp
steps      60 in 3 epochs; learning rate 3e-3, cosine, 2 warmup steps
memory     181 MiB per process planned
output     out
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fastchat.data.batches.packing import PackedDataset
from fastchat.errors import counted, say
from fastchat.model.decoder_layers import checkpointed_layers
from fastchat.model.loading import count_parameters, describe_quantization
from fastchat.plan.units import human
from fastchat.train.datasets import Corpus
from fastchat.train.progress import short
from fastchat.train.record import Run
from fastchat.train.trainer import ChatTrainer

_WITHOUT_WARMUP = ("constant", "greedy")


class Overview(TrainerCallback):
    """Prints the block once the number of steps is known."""

    def __init__(self, run: Run, trainer: ChatTrainer) -> None:
        self.run, self.trainer = run, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called once by the Trainer, after the engine is ready and before step 1."""
        say("\n".join(f"{name:<10} {text}" for name, text in self.rows(args, state).items()))

    def rows(self, args: Any, state: Any) -> dict[str, str]:
        """The lines of the block by their names. The number of steps must be known."""
        plan = self.trainer.memory.plan
        rows = {
            "model": self._model(),
            "data": self._data(),
            "template": self.run.text.chat_encoder.template.name,
            "batch": self._batch(args),
            "engine": self._engine(),
            "steps": self._steps(args, state),
            "layers": self._layers(),
            "memory": "" if plan is None else _memory(plan),
            "output": str(Path(args.output_dir)),
        }
        return {name: text for name, text in rows.items() if text}

    def _model(self) -> str:
        model: Any = self.trainer.model
        trained, total = count_parameters(model, self.trainer.engine.numel)
        kind = describe_quantization(model)["type"]
        what = "LoRA" if self.trainer.plan.adapter else "full fine-tuning"
        share = f" ({100 * trained / total:.3f} %)" if trained < total else ""
        of = f"{trained:,} of {total:,} parameters{share}" if trained < total else f"{total:,} parameters"
        return f"{self.run.base_model}: {what}, {of}" + (f", {kind}" if kind else "")

    def _data(self) -> str:
        corpora = self.run.corpora
        evaluation = f"; evaluation: {corpora['eval'].dataset.size}" if "eval" in corpora else ""
        rows: Any = self.trainer.train_dataset
        shared = rows.packs.shared if isinstance(rows, PackedDataset) else ""
        return f"{_corpus(corpora['train'])}{self._tails(rows)}{shared}{evaluation}"

    def _tails(self, rows: Any) -> str:
        """How many tokens are left out, since no loss depends on them."""
        examples = rows.dataset if isinstance(rows, PackedDataset) else rows
        tails = int(self.run.corpora["train"].dataset.lengths.sum() - examples.lengths.sum())
        return f", {tails:,} not computed (after an example's last learned token)" if tails else ""

    def _batch(self, args: Any) -> str:
        processes, micro = self.trainer.engine.world_size, args.per_device_train_batch_size
        accumulation = args.gradient_accumulation_steps
        dataset = self.run.corpora["train"].dataset
        rows = "dialogue" if len(dataset) == dataset.num_dialogues else "example"
        rows = "pack" if self.trainer.packing() else rows
        factors = f"{counted(processes, 'process')} x {micro} x accumulation {accumulation}"
        return f"{counted(processes * micro * accumulation, rows)} = {factors}"

    def _engine(self) -> str:
        """Nothing for one process that holds everything, as usual."""
        engine = self.trainer.engine
        return "" if engine.name == "plain" else engine.line()

    def _layers(self) -> str:
        """What is done to them besides computing them; "" for nothing."""
        checkpointed = checkpointed_layers(self.trainer.model)
        what = [f"{checkpointed} checkpointed"] if checkpointed else []
        return ", ".join((*what, self.trainer.speed.line)) if self.trainer.speed.line else ", ".join(what)

    def _steps(self, args: Any, state: Any) -> str:
        at = f" (continued after step {state.global_step:,})" if state.global_step else ""
        kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        warmup = 0 if kind in _WITHOUT_WARMUP else args.get_warmup_steps(state.max_steps)
        epochs = counted(round(state.max_steps / max(self._steps_per_epoch(), 1), 2), "epoch")
        line = f"{state.max_steps:,}{at} in {epochs}; learning rate {short(args.learning_rate)}, {kind}"
        return f"{line}, {counted(warmup, 'warmup step') if warmup else 'no warmup'}"

    def _steps_per_epoch(self) -> int:
        batches = self.trainer.train_batches()
        return -(-len(batches.permutation()) // batches.global_batch)


def _corpus(corpus: Corpus) -> str:
    dataset = corpus.dataset
    tokens, learned = int(dataset.lengths.sum()), int(dataset.num_supervised.sum())
    share = f" ({100 * learned / tokens:.1f} %)" if tokens else ""
    return f"{dataset.size}, {counted(tokens, 'token')}, {learned:,} of them learned{share}"


def _memory(plan: Any) -> str:
    machine = plan.run.machine
    per = "process" if machine.on_cpu else "GPU"
    of = f" of {human(machine.gpu_memory)}" if machine.gpu_memory else ""
    return f"{human(plan.total)}{of} per {per} planned"
