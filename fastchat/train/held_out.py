"""`--eval_generate`: answers to some of the evaluation's prompts, generated and scored at every evaluation.

The random numbers of the training stay where they are, so its losses are the same with and without. Every process has
its share of the prompts; under ZeRO-3 all make each forward pass together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastchat.checkpoint.resume_state import random_state, set_random_state
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import IGNORED
from fastchat.data.encoding.plain_text import lead_of
from fastchat.data.tokens.dataset import ChatDataset
from fastchat.errors import DataError, say
from fastchat.eval.answers import Answered, answer_prompts, read_answer
from fastchat.eval.generation import Sampling, generate_in_all
from fastchat.eval.matching import EVAL_FLAGS, Match, make_match, metrics_of

if TYPE_CHECKING:
    from fastchat.train.record import Run

_BATCHES = 4  # of every process, between two looks at whether the run was asked to stop


class HeldOutAnswers:
    """The prompts, and what the data answers: the last complete answer of examples spread over the evaluation data.

    Raises DataError if there is none that can be compared.
    """

    def __init__(
        self, dataset: ChatDataset, chat_encoder: ChatEncoder, pad_id: int, num: int, match: Match, sampling: Sampling
    ):
        self.chat_encoder, self.pad_id, self.match, self.sampling = chat_encoder, pad_id, match, sampling
        found: list[tuple[list[int], str]] = []
        step = max(len(dataset) // num, 1)
        for place in (place for start in range(step) for place in range(start, len(dataset), step)):
            if len(found) == num:
                break
            found += self._question(dataset[place])
        if not found:
            raise DataError(
                f"--eval_generate {num}: no evaluation dialogue has a complete answer to compare with "
                f"(--eval_match {match.kind})"
            )
        if len(found) < num:
            say(f"--eval_generate {num}: the evaluation data has {len(found)} answers to compare with")
        found.sort(key=lambda pair: -len(pair[0]))  # batches of prompts of one length
        self.prompts, self.references = [prompt for prompt, _ in found], [text for _, text in found]

    def _question(self, example: dict[str, Any]) -> Iterator[tuple[list[int], str]]:
        """The last answer of an example: its prompt, and its text; nothing for plain text or one that was cut."""
        ids, labels = example["input_ids"].tolist(), example["labels"].tolist()
        end = max(place for place, label in enumerate(labels) if label != IGNORED) + 1
        start = end - 1
        while start and labels[start - 1] != IGNORED and ids[start - 1] not in self.chat_encoder.stop_ids:
            start -= 1
        if start <= len(lead_of(self.chat_encoder)):
            return
        text, stopped = read_answer(self.chat_encoder, ids[:start], ids[start:end])
        if stopped and self.match.score(text, text) is not None:
            yield ids[:start], text

    def measure(self, trainer: Any) -> dict[str, float]:
        """The metrics of these answers, by name; `trainer` is a ChatTrainer. Every process calls it.

        Raises what `trainer.go_on` raises if the run was asked to stop.
        """
        before = random_state()
        try:
            answers = list(self._answers(trainer))
        finally:
            set_random_state(before)
        scores = [self.match.score(one.text, text) for one, text in zip(answers, self.references, strict=True)]
        stopped = [one.finish_reason == "stop" for one in answers]
        right = sum(score is True for score in scores)
        return dict(zip(metrics_of(self.match), (right / len(scores), sum(stopped) / len(stopped)), strict=True))

    def _answers(self, trainer: Any) -> Iterator[Answered]:
        args, engine = trainer.args, trainer.engine
        size = args.per_device_eval_batch_size * engine.world_size * _BATCHES
        for start in range(0, len(self.prompts), size):
            trainer.go_on()
            with trainer.compute_loss_context_manager():
                yield from answer_prompts(
                    trainer.model,
                    self.chat_encoder,
                    self.prompts[start : start + size],
                    sampling=self.sampling,
                    pad_id=self.pad_id,
                    generate_ids=generate_in_all,
                    batch_size=args.per_device_eval_batch_size,
                    together=engine.partitions and engine.world_size > 1,
                    device=args.device,
                )


def held_out_answers(args: Any, run: Run) -> HeldOutAnswers | None:
    """What `--eval_generate` asks for; None without it. `args`: the training arguments."""
    if not args.eval_generate or "eval" not in run.corpora:
        return None
    return HeldOutAnswers(
        run.corpora["eval"].dataset,
        run.text.chat_encoder,
        run.text.pad_token_id,
        args.eval_generate,
        make_match(args.eval_match, args.eval_pattern, EVAL_FLAGS),
        Sampling(args.eval_max_new_tokens),
    )
