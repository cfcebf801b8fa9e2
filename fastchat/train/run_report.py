"""What a run leaves for its readers: answers.jsonl, report.json, report.html and PNGs of its curves.

Nothing of it can end a run: what fails is said once. The answers after training are made, and the last report is
written, when the result has been saved.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fastchat.checkpoint.staging import remove
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.view.token_text import TokenTexts
from fastchat.errors import ResourceError, brief, counted, is_out_of_memory, say, values_without_secrets
from fastchat.files import JsonError, parse_json, write_json, write_text
from fastchat.model.rope import context_length
from fastchat.processes import on_main_process, rank
from fastchat.report.reading import ANSWERS_NAME, BEGUN_NAME, PAGE_NAME
from fastchat.report.writing import charts_folder, is_report, rewrite, write_charts
from fastchat.train.answers import Prompt, answer_all, choose_prompts, undisturbed
from fastchat.train.callbacks import Guarded
from fastchat.train.overview import Overview
from fastchat.train.record import Run, make_record
from fastchat.train.trainer import ChatTrainer

NONE, PNG = "none", "png"  # values of --run_report
_EXAMPLE_TOKENS = 1500  # of the example in the report


class RunReport(TrainerCallback):
    """Writes them as the run goes on. `kind`: `--run_report`; `number`: `--sample_prompts`."""

    def __init__(self, run: Run, trainer: ChatTrainer, *, kind: str, number: int) -> None:
        self.run, self.trainer, self.kind, self.number = run, trainer, kind, number
        self.folder = trainer.plan.folder
        self.prompts: list[Prompt] = []
        self.warned = False
        self.page: Path | None = None  # once the last one has been written

    # ---- the run's events ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._quietly("what an earlier run left", self._clear)
        self.prompts = on_main_process(self._prompts) or []
        if state.global_step == 0:
            self._answer(0)
        record = make_record(self.run, self.trainer)
        self._quietly(BEGUN_NAME, lambda: self._begin(state, asdict(record)))
        self._rewrite()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._rewrite()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._rewrite()

    def finish(self) -> None:
        """The result has been saved: the answers of it, and the last report."""
        self._answer(self.trainer.state.global_step)
        if self.kind != NONE:
            self._quietly(PAGE_NAME, self._write_last)

    def end(self, error: BaseException) -> None:
        """The run ends with an error, or because it was asked to."""
        status = {"status": "preempted" if isinstance(error, KeyboardInterrupt) else "failed", "message": str(error)}
        if self.kind != NONE:
            self._quietly(PAGE_NAME, lambda: rewrite(self.folder, running=False, status=status))

    # ---- answers ----

    def _prompts(self) -> list[Prompt]:
        """Rank 0 chooses for all."""
        corpus = self.run.corpora.get("eval")
        if corpus is None or not self.number:
            return []
        found: list[Prompt] = []

        def choose() -> None:
            found.extend(choose_prompts(corpus.dataset, self.number, max_length=self._max_length()))
            if len(found) < self.number:
                say(
                    f"--sample_prompts {self.number}: the evaluation data has {counted(len(found), 'prompt')} that "
                    f"leave room for an answer within --model_max_length and come before an answer"
                )

        self._quietly("the prompts of --sample_prompts", choose)
        return found

    def _max_length(self) -> int:
        """Tokens of a prompt and its answer: not more than an evaluation takes at once."""
        context = context_length(self.trainer.model.config)  # pyright: ignore[reportOptionalMemberAccess]
        asked: int = self.trainer.args.model_max_length  # pyright: ignore[reportAttributeAccessIssue]
        return asked if context is None else min(asked, context)

    def _answer(self, step: int) -> None:
        """Makes, keeps and reports the answers of `step`."""
        rows: list[dict[str, Any]] = []
        together = self.trainer.engine.partitions
        if not self.prompts or not (together or rank() == 0):
            return
        try:
            rows = self._answers()
        except Exception as error:  # noqa: BLE001 - of a model that does not generate, for example
            if together and is_out_of_memory(error):  # perhaps only here: the others would wait for this process
                raise ResourceError(
                    "the memory is too small to answer the prompts of --sample_prompts; --sample_prompts 0 leaves them "
                    "out"
                ) from None
            self._warn("the answers of --sample_prompts", error)
        if rows:
            self._quietly(ANSWERS_NAME, lambda: self._keep([{"step": step, **row} for row in rows], step))

    def _answers(self) -> list[dict[str, Any]]:
        model: Any = self.trainer.model
        optimizer: Any = self.trainer.optimizer
        with undisturbed(model), self.trainer.compute_loss_context_manager():
            if callable(getattr(optimizer, "eval", None)):  # schedule-free; training switches it back
                optimizer.eval()
            rows = answer_all(
                model,
                self.prompts,
                self.run.text.chat_encoder,
                pad_id=self.run.text.pad_token_id,
                batch_size=self.trainer.args.per_device_eval_batch_size,
                together=self.trainer.engine.partitions,
                device=self.trainer.args.device,
            )
        self.trainer.memory.leave_out()
        return rows

    def _keep(self, rows: list[dict[str, Any]], step: int) -> None:
        """Those of step 0 stay in the file, those of an earlier end go."""
        path = self.folder / ANSWERS_NAME
        earlier = [row for row in _read(path) if row.get("step") == 0] if step else []
        rows = values_without_secrets(rows)
        write_text(path, "".join(json.dumps(row) + "\n" for row in [*earlier, *rows]))
        for report in self.trainer.callback_handler.callbacks:
            if isinstance(report, Guarded):
                report.send_answers(rows, step)

    # ---- the report ----

    def _clear(self) -> None:
        """A run that starts over leaves nothing of what another has reported there."""
        for name in (ANSWERS_NAME, BEGUN_NAME):
            (self.folder / name).unlink(missing_ok=True)
        page = self.folder / PAGE_NAME
        if page.is_file() and is_report(page):
            page.unlink()
            remove(charts_folder(page))

    def _begin(self, state: Any, record: dict[str, Any]) -> None:
        if self.kind == NONE:
            return
        begun = {
            "format": 1,
            "steps": state.max_steps,
            "samples": {"prompts": len(self.prompts)},
            "overview": Overview(self.run, self.trainer).rows(self.trainer.args, state),
            "example": example_of(self.run.corpora["train"].dataset, self.run.text.chat_encoder.encoder),
            "record": record,
        }
        write_json(self.folder / BEGUN_NAME, values_without_secrets(json.loads(json.dumps(begun, default=str))))

    def _rewrite(self) -> None:
        if self.kind != NONE:
            self._quietly(PAGE_NAME, lambda: rewrite(self.folder, running=True))

    def _write_last(self) -> None:
        run = rewrite(self.folder, running=False, status={"status": "done"})
        self.page = self.folder / PAGE_NAME
        if self.kind == PNG:
            say(write_charts([run], self.folder / PAGE_NAME))

    def _quietly(self, what: str, work: Callable[[], Any]) -> None:
        """Does `work` in the first process; its failure is said once."""
        if rank() != 0:
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a report is no reason to lose a run
            self._warn(what, error)

    def _warn(self, what: str, error: Exception) -> None:
        if not self.warned:
            reason = brief(getattr(error, "strerror", None) or error)
            say(f"WARNING: {what} could not be made ({type(error).__name__}: {reason}); the run is not affected")
        self.warned = True


def example_of(dataset: Any, encoder: TextEncoder) -> dict[str, Any]:
    """The first training example: {"row", "tokens", "learned", "more", "parts": [[1 if learned else 0, text], ...]}."""
    example = dataset[0]
    ids, labels = example["input_ids"].tolist(), example["labels"].tolist()
    texts = TokenTexts(encoder).of(ids[:_EXAMPLE_TOKENS])
    parts: list[list[Any]] = []
    for text, token, label in zip(texts, ids, labels, strict=False):
        learned = int(label == token)
        if parts and parts[-1][0] == learned:
            parts[-1][1] += text
        else:
            parts.append([learned, text])
    learned = sum(label == token for label, token in zip(labels, ids, strict=True))
    more = max(0, len(ids) - _EXAMPLE_TOKENS)
    return {"row": example["index"], "tokens": len(ids), "learned": learned, "more": more, "parts": parts}


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of answers.jsonl; none of a file that is missing or damaged."""
    try:
        return [row for line in path.read_bytes().splitlines() if isinstance(row := parse_json(line), dict)]
    except (OSError, JsonError):
        return []
