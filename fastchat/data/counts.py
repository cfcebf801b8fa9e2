"""What became of every row and token: adding it up, and saying it in a few lines.

rows                     in the files                  dialogues            examples that are trained on
dropped_<reason>         rows that are not             bad_rows             of these, malformed ones
tokens                   of all examples               supervised_tokens    of these, learned
trained_turns            assistant turns learned       untrained_turns      assistant turns that are not
truncated_dialogues      examples that were cut        truncated_tokens     tokens they lost
straddling_tokens        hold characters of an answer and of something else
neutralised_lookalikes   control tokens in messages that were kept plain text by force
and one for each treatment in formats.TREATMENTS
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fastchat.data.formats import TREATMENTS
from fastchat.data.tokenization import Example

_DROPPED = "dropped_"
# Why rows with nothing to learn are dropped, and the way out.
_CAUSES = {
    "no_answer_within_length": "what comes before the first answer alone has --model_max_length ({max_length}) tokens; "
    "raise it",
    "overlong": "dialogues have more than --model_max_length ({max_length}) tokens; raise it, or --overlong truncate",
    "no_trained_turn": 'every answer is empty or says "train": false',
    "no_assistant_turn": "no user turn is answered; are the roles right?",
    "empty_dialogue": "dialogues have no turns; are they under another key?",
}


def count_example(counts: Counter[str], example: Example) -> None:
    """Add one tokenised dialogue, dropped or not."""
    if example.dropped is not None:
        counts[_DROPPED + example.dropped] += 1
        return
    counts["dialogues"] += 1
    counts["tokens"] += len(example.input_ids)
    counts["supervised_tokens"] += example.num_supervised
    counts["trained_turns"] += example.trained_turns
    counts["untrained_turns"] += example.untrained_turns
    counts["truncated_dialogues"] += example.truncated_tokens > 0
    counts["truncated_tokens"] += example.truncated_tokens
    counts["straddling_tokens"] += example.straddling
    counts["neutralised_lookalikes"] += example.neutralised


def dropped(counts: Mapping[str, int]) -> dict[str, int]:
    """Rows left out, by reason."""
    return {key.removeprefix(_DROPPED): n for key, n in counts.items() if key.startswith(_DROPPED) and n}


def table(counts: Mapping[str, int]) -> str:
    """The counts in a few lines for the log; what did not happen is not mentioned.

    Example:
        rows         6,000: 5,998 trained on, 2 dropped (empty_dialogue 2)
        tokens       1,722,503: 1,012,345 supervised (58.8 %) in 15,000 turns
        truncated    12 dialogues, by 345 tokens
    """
    out = dropped(counts)
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(out.items(), key=lambda item: -item[1]))
    left_out = f", {sum(out.values()):,} dropped ({reasons})" if out else ""
    lines = [("rows", f"{counts.get('rows', 0):,}: {counts.get('dialogues', 0):,} trained on{left_out}")]
    tokens, supervised = counts.get("tokens", 0), counts.get("supervised_tokens", 0)
    share = f" ({100 * supervised / tokens:.1f} %)" if tokens else ""
    turns = f"{counts.get('trained_turns', 0):,} turns"
    lines.append(("tokens", f"{tokens:,}: {supervised:,} supervised{share} in {turns}"))
    if n := counts.get("truncated_dialogues"):
        lines.append(("truncated", f"{n:,} dialogues, by {counts['truncated_tokens']:,} tokens"))
    others = {
        "untrained_turns": "assistant turns that are not trained",
        "straddling_tokens": "tokens that hold characters of an answer and of something else",
        "neutralised_lookalikes": "control tokens written in messages, kept plain text",
        **TREATMENTS,
    }
    lines += [("also", f"{counts[key]:,} {meaning}") for key, meaning in others.items() if counts.get(key)]
    return "\n".join(f"{name:<12} {value}" for name, value in lines)


def hint_at_causes(counts: Mapping[str, int], max_length: int) -> str:
    """What is likely wrong with data in which nothing is supervised."""
    reasons = sorted(dropped(counts).items(), key=lambda item: -item[1])
    causes = [_CAUSES[reason].format(max_length=max_length) for reason, _ in reasons if reason in _CAUSES]
    if any(reason.startswith("bad_row") for reason, _ in reasons):
        causes.append("rows cannot be read; see them with --on_bad_row stop")
    return "Likely cause: " + ("; ".join(causes) or "the data") + "."
