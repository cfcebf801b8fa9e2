"""One evaluation: the model and the data loaded, tokens scored, answers generated and compared, results written."""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import dataclass
from typing import Any

from fastchat import files
from fastchat.bars import bar
from fastchat.checkpoint.trained_model import weights_of
from fastchat.data.rows.columns import Columns
from fastchat.data.rows.fingerprint import sha256_of
from fastchat.data.rows.sources import find_sources
from fastchat.data.rows.writing import StagedFile, check_output
from fastchat.errors import DataError, ResourceError, SettingsError, counted, say, show
from fastchat.eval.answers import Answered, answer_prompts
from fastchat.eval.examples import Evaluated, Limits, Question, read_examples
from fastchat.eval.flags import bits_of
from fastchat.eval.generation import Sampling
from fastchat.eval.loading import Loaded, load_for_evaluation, recorded
from fastchat.eval.losses import TokenScores, score_tokens
from fastchat.eval.matching import Match, make_match
from fastchat.eval.partial import Partial
from fastchat.eval.report import Scored, Tokens, summarize, table
from fastchat.serve.placement import choose_placement


@dataclass(frozen=True)
class Asked:
    """A question with the example that it is of."""

    example: Evaluated
    question: Question

    @property
    def key(self) -> str:
        """Stands for it in files and random numbers."""
        return f"{self.example.row} {self.example.part} {self.question.number}"


def evaluate(args: argparse.Namespace) -> None:
    """Run the command. Raises UserError."""
    match = make_match(args.match, args.pattern)
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    columns = Columns(args.data_columns, args.data_roles)
    sources = find_sources("--data_path", args.data_path, split=args.data_split, revision=args.data_revision)
    inputs = [file for source in sources for file in source.files]
    for flag, path in (("--output", args.output), ("--summary", args.summary)):
        if path is not None:
            check_output(flag, path, [*inputs, *([args.output] if flag == "--summary" and args.output else [])])
    warnings.simplefilter("ignore", FutureWarning)  # a user cannot do anything about those of the libraries
    loaded = load_for_evaluation(
        args.model_path,
        base_model_path=args.base_model_path,
        conv_template=args.conv_template,
        placement=choose_placement(args.device, args.num_gpus, args.max_gpu_memory, bits_of(args)),
        cache_dir=args.cache_dir,
        trust_remote_code=args.trust_remote_code,
    )
    limits = Limits(*_lengths(args, loaded), args.on_bad_row, columns, args.max_samples, args.generate)
    data = read_examples(inputs, loaded.chat_encoder, limits)
    about = {**describe(args, loaded, limits), "counts": data.counts, "num_examples": len(data.examples)}
    show(f"model        {about['model']}\ntemplate     {about['template']}\n{data.table}")
    identity = {
        **about,
        "data": list(map(sha256_of, inputs)),
        "weights": weights_of(loaded.trained),
        "sampling": vars(sampling),
    }
    with Partial(args.output if args.generate else None, identity) as partial:
        scores = _scored_tokens(args, loaded, data.examples)
        asked = [Asked(example, question) for example in data.examples for question in example.questions]
        answers = _answers(args, loaded, asked, sampling, partial) if args.generate else []
        lines = [_line(example, one) for example, one in zip(data.examples, scores, strict=True)]
        compared = [match.score(answer["text"], one.question.reference) for one, answer in zip(asked, answers)]  # noqa: B905
        found = summarize(
            [part for example, one in zip(data.examples, scores, strict=True) for part in _parts(example, one)],
            [
                Scored(one.example.row, one.example.source, one.question.number, right, answer["finish_reason"])
                for one, right, answer in zip(asked, compared, answers, strict=False)
            ],
            match.metric,
        )
        if args.generate:
            _add_answers(lines, data.examples, asked, answers, compared)
            _check_compared(compared, match)
        _write(args, lines, {**about, **found})
        partial.remove()
    show("\n" + table(found, match.metric))


def describe(args: argparse.Namespace, loaded: Loaded, limits: Limits) -> dict[str, Any]:
    """What was evaluated and how, JSON-able."""
    trained = loaded.trained
    base = f" on {trained.base}" if trained.is_adapter else ""
    return {
        "model": f"{trained.path}{base}",
        "template": loaded.chat_encoder.template.name,
        "train_on": loaded.chat_encoder.train_on,
        "model_max_length": limits.max_length,
        "overlong": limits.overlong,
        "max_samples": limits.max_samples,
        "data_path": list(args.data_path),
    }


def _lengths(args: argparse.Namespace, loaded: Loaded) -> tuple[int, str]:
    """(length limit, what happens to longer dialogues): as given, else as in training."""
    record = loaded.trained.record
    length = args.model_max_length or recorded(record, "model_max_length") or loaded.context
    if not length:
        raise SettingsError(f"--model_max_length is needed: {args.model_path} does not say how long its inputs can be")
    if loaded.context and length > loaded.context:
        if args.model_max_length:
            raise SettingsError(f"--model_max_length {length}: the model's context is {loaded.context} tokens")
        length = loaded.context
    return int(length), args.overlong or recorded(record, "overlong") or "truncate"


def _scored_tokens(args: argparse.Namespace, loaded: Loaded, examples: list[Evaluated]) -> list[TokenScores]:
    with bar("computing the loss", len(examples), "example") as progress:
        return score_tokens(loaded, examples, batch_size=args.batch_size, on_done=progress.advance)


def _answers(
    args: argparse.Namespace, loaded: Loaded, asked: list[Asked], sampling: Sampling, partial: Partial
) -> list[dict[str, Any]]:
    """The generated answer to each question: "text", "finish_reason", "num_prompt", "num_tokens"."""
    if not asked:
        raise DataError("--generate: no dialogue has an answer that could be generated (plain text has no questions)")
    missing = [one for one in asked if one.key not in partial.found]

    def done(number: int, answer: Answered) -> None:
        partial.add(missing[number].key, vars(answer))
        progress.advance()

    with loaded.computing(), bar("generating", len(missing), "answer") as progress:
        answer_prompts(
            loaded.model,
            loaded.chat_encoder,
            [one.question.prompt for one in missing],
            sampling=sampling,
            pad_id=loaded.pad_id,
            keys=[one.key for one in missing],
            batch_size=args.batch_size,
            on_done=done,
        )
    return [partial.found[one.key] for one in asked]


def _parts(example: Evaluated, scores: TokenScores) -> list[Tokens]:
    """The tokens of each answer of an example."""
    sums: dict[int, list[float]] = {}
    for number, loss, right in zip(scores.answer_of, scores.losses, scores.right, strict=True):
        found = sums.setdefault(number, [0, 0.0, 0])
        found[0] += 1
        found[1] += loss
        found[2] += right
    return [
        Tokens(example.row, example.source, answer, int(number), loss, int(right))
        for answer, (number, loss, right) in sums.items()
    ]


def _line(example: Evaluated, scores: TokenScores) -> dict[str, Any]:
    """The line of an example in --output."""
    number = len(scores.losses)
    return {
        "row": example.row,
        "part": example.part,
        "place": example.place,
        "id": example.id,
        "source": example.source,
        "num_tokens": len(example.input_ids),
        "num_supervised_tokens": number,
        "loss": sum(scores.losses) / number if number else None,
        "token_accuracy": sum(scores.right) / number if number else None,
    }


def _add_answers(
    lines: list[dict[str, Any]],
    examples: list[Evaluated],
    asked: list[Asked],
    answers: list[dict[str, Any]],
    compared: list[bool | None],
) -> None:
    of_example: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for one, answer, right in zip(asked, answers, compared, strict=True):
        made = {"answer": one.question.number, "right": right, "reference": one.question.reference, **answer}
        of_example.setdefault((one.example.row, one.example.part), []).append(made)
    for line, example in zip(lines, examples, strict=True):
        line["answers"] = of_example.get((example.row, example.part), [])


def _check_compared(compared: list[bool | None], match: Match) -> None:
    """Say how many answers cannot be compared. Raises DataError if none can."""
    left_out = sum(right is None for right in compared)
    if not left_out:
        return
    what = "number" if match.pattern is None else f"match of --pattern {match.pattern.pattern!r}"
    if left_out == len(compared):
        raise DataError(f"--match {match.kind}: no answer of the data has a {what} to compare with")
    say(f"{counted(left_out, 'answer')} of {len(compared):,} left out: the data's own answer has no {what}")


def _write(args: argparse.Namespace, lines: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    if args.output is not None:
        with StagedFile(args.output, "--output") as output:
            for line in lines:
                output.write(json.dumps(line) + "\n")
    if args.summary is not None:
        try:
            files.write_json(args.summary, _without_infinity(summary))
        except OSError as error:
            raise ResourceError(f"--summary {args.summary}: cannot be written ({error.strerror or error}).") from None


def _without_infinity(value: Any) -> Any:
    """JSON has neither infinity nor NaN: null."""
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
