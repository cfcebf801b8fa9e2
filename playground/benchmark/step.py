"""What a training step costs besides the model: this project's trainer, transformers' Trainer and a plain loop.

    python playground/benchmark/step.py
    python playground/benchmark/step.py --model_name_or_path DIR --data_path FILE --steps 50 --profile

All three train the same adapter on the same batches in the same order, with the same loss over all logits, AdamW, a
linear schedule and clipping; their losses are compared first. They take turns, and every figure is CPU seconds of this
one process for steps 6 to the last, with a line of the log for each. `--profile` prints where ours spends its time.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
from made import make_model, make_rows

WARM_UP = 5  # steps that are not counted
Losses = list[float]


class Clock(transformers.TrainerCallback):
    """CPU seconds of the steps after the warm-up, and the batches that were trained. Added last, so that it begins
    after and ends after all other callbacks of a step."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ended = time.process_time()
        if state.global_step == WARM_UP:
            self.began = self.ended


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prepare(args, Path(folder))
        trainer, _, losses = ours(args, Path(folder))
        model, batches = fresh(args, Path(folder)), recorded(trainer)
        ways: dict[str, Callable[[], tuple[float, Losses]]] = {
            "plain loop": lambda: plain_loop(args, model(), batches),
            "this project": lambda: ours(args, Path(folder))[1:],
            "transformers' Trainer": lambda: theirs(args, model(), batches, Path(folder)),
        }
        for name, way in ways.items():
            found = way()[1]
            off = max(abs(a - b) / abs(b) for a, b in zip(found, losses, strict=True))
            print(f"{name}: losses of {len(found)} steps differ by at most {off:.0e}")
            assert off < 1e-4, (name, found, losses)
        measured: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeat):
            for name, way in ways.items():
                measured[name].append(way()[0])
        report(measured, args.steps - WARM_UP)
        if args.profile:
            profile(args, Path(folder))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU seconds of a training step besides the model.")
    parser.add_argument("--model_name_or_path", help="by default a Llama with 4 layers of width 64")
    parser.add_argument("--data_path", help="by default dialogues of 60 to 200 tokens")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=105, help="of which the first 5 are not counted (%(default)s)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    return parser.parse_args()


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Makes the model and the data that were not given."""
    if args.model_name_or_path is None:
        sizes: dict[str, Any] = {
            "hidden_size": 64,
            "intermediate_size": 172,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        }
        config = transformers.LlamaConfig(**sizes, vocab_size=260, max_position_embeddings=512)
        args.model_name_or_path = str(make_model(folder / "model", config, "float32"))
    if args.data_path is None:
        args.data_path = str(make_rows(folder, (60, 200), args.batch * args.steps))


def words(args: argparse.Namespace, folder: Path) -> list[str]:
    given = ["--model_name_or_path", args.model_name_or_path, "--data_path", args.data_path, "--use_cpu"]
    given += ["--output_dir", str(folder / "out"), "--overwrite_output_dir", "--max_steps", str(args.steps)]
    given += ["--per_device_train_batch_size", str(args.batch), "--chunked_head", "False", "--lora_dropout", "0"]
    return [*given, "--run_report", "none", "--sample_prompts", "0", "--disable_tqdm", "--conv_template", "vicuna_v1.1"]


def ours(args: argparse.Namespace, folder: Path, around: Any = None) -> tuple[Any, float, Losses]:
    """A whole run of train_lora in this process: (its trainer, CPU seconds, losses)."""
    from fastchat.train import recipe, train_lora
    from fastchat.train.status import attempt

    clock, made, build = Clock(), [], recipe.make_trainer

    def with_clock(*given: Any, **more: Any) -> Any:
        made.append(build(*given, **more))
        made[-1].add_callback(clock)
        if around is not None:
            made[-1]._run_epoch = around(made[-1]._run_epoch)
        return made[-1]

    recipe.make_trainer = with_clock
    try:
        output = str(folder / "out")
        assert attempt(lambda status: train_lora.run(words(args, folder), status), output) == 0
    finally:
        recipe.make_trainer = build
    rows = [row["loss"] for row in made[0].state.log_history if "loss" in row]
    return made[0], clock.ended - clock.began, rows


def recorded(trainer: Any) -> list[dict[str, torch.Tensor]]:
    """The batches of a run, in their order."""
    batches: list[dict[str, torch.Tensor]] = []
    loader = trainer.get_train_dataloader()
    while len(batches) < trainer.state.max_steps:
        batches += list(loader)
    return batches[: trainer.state.max_steps]


def fresh(args: argparse.Namespace, folder: Path) -> Callable[[], Any]:
    """Makes the model of a run as it was before its first step."""
    from fastchat.model.loading import load_base_model
    from fastchat.model.lora import add_lora

    def make() -> Any:
        base = load_base_model(args.model_name_or_path)
        transformers.set_seed(42)
        return add_lora(base, dropout=0.0)

    return make


def plain_loop(args: argparse.Namespace, model: Any, batches: list[dict[str, torch.Tensor]]) -> tuple[float, Losses]:
    from fastchat.train.loss import count_tokens, loss_sum

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / args.steps)
    model.train()
    losses, began = [], 0.0
    for step, batch in enumerate(batches):
        if step == WARM_UP:
            began = time.process_time()
        loss = loss_sum(model, batch) / count_tokens([batch])[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return time.process_time() - began, losses


def theirs(
    args: argparse.Namespace, model: Any, batches: list[dict[str, torch.Tensor]], folder: Path
) -> tuple[float, Losses]:
    from fastchat.train.loss import loss_sum

    class Trainer(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
            return loss_sum(model, inputs) / more["num_items_in_batch"]

        def get_train_dataloader(self) -> Any:
            return batches

        def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> Any:
            return sum((batch["labels"][:, 1:] != -100).sum() for batch in batch_samples)

    clock = Clock()
    more: dict[str, Any] = {"logging_steps": 1, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    training = transformers.TrainingArguments(
        str(folder / "theirs"), max_steps=args.steps, use_cpu=True, learning_rate=5e-5, max_grad_norm=1.0, **more
    )
    transformers.utils.logging.set_verbosity_error()
    trainer = Trainer(model, training, train_dataset=batches, callbacks=[clock])  # pyright: ignore
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    rows = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return clock.ended - clock.began, rows


def report(measured: dict[str, list[float]], steps: int) -> None:
    base = statistics.median(measured["plain loop"])
    print(f"\n{'':<24}{'ms per step':>12}{'spread':>16}{'over the loop':>15}")
    for name, seconds in measured.items():
        each = sorted(1000 * value / steps for value in seconds)
        over = statistics.median(seconds) / base - 1
        print(f"{name:<24}{statistics.median(each):>12.2f}{each[0]:>9.2f}-{each[-1]:.2f}{over:>14.1%}")


def profile(args: argparse.Namespace, folder: Path) -> None:
    profiler = cProfile.Profile()

    def around(run_epoch: Callable[..., Any]) -> Callable[..., Any]:
        def profiled(*given: Any, **more: Any) -> Any:
            return profiler.runcall(run_epoch, *given, **more)

        return profiled

    ours(args, folder, around)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(90)


if __name__ == "__main__":
    main()
