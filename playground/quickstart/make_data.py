"""Write what the quickstart needs from the tables in facts.py: plain text, chats, and an untrained model.

    python playground/quickstart/make_data.py FOLDER

    FOLDER/base.jsonl        plain text for the base model, as instruction (how it begins) and output (how it goes on)
    FOLDER/chat_train.json   ShareGPT conversations that ask about two thirds of the things
    FOLDER/chat_eval.json    the same questions about the remaining third: only the base's text holds those answers
    FOLDER/blank             a Llama of about a million random parameters with a tokenizer trained on all this text

The same tables give the same files, byte for byte.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from facts import TOPICS, Topic

NUM_READINGS = 3  # how often the base's text says every statement, each time in another order
NUM_ECHOES = 200  # rows in each reading that only repeat words
VOCABULARY = 1600  # most words become one token, so that a million parameters suffice
CHAT_WORDS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: x ASSISTANT: x"
)
Asked = tuple[Topic, str]


def plain_text(rng: random.Random) -> list[dict[str, str]]:
    """Rows of plain text, cut where the rest follows from the words before; each reading says everything once.

    Some rows begin with other statements. And some say four unrelated words twice: to answer a question the model has
    to look back and repeat the word that was asked about, which 242 facts alone do not reliably teach it.
    """
    statements = [s for topic in TOPICS for thing in topic.facts for s in topic.statements(thing)]
    things = [thing for topic in TOPICS for thing in topic.facts]
    rows = []
    for _ in range(NUM_READINGS):
        words = [" ".join(rng.sample(things, 4)) for _ in range(NUM_ECHOES)]
        said = statements + [f"They said {four}, and again:| {four}." for four in words]
        rng.shuffle(said)
        for one in said:
            before = [other.replace("|", "") for other in rng.sample(statements, rng.choice((0, 0, 1, 2)))]
            start, rest = " ".join([*before, one]).split("|")
            rows.append({"instruction": start, "output": rest})
    return rows


def split_things(rng: random.Random) -> tuple[list[Asked], list[Asked]]:
    """(asked about in training, held out): two thirds and one third of every topic."""
    asked: list[Asked] = []
    held_out: list[Asked] = []
    for topic in TOPICS:
        things = list(topic.facts)
        rng.shuffle(things)
        cut = len(things) * 2 // 3
        asked += [(topic, thing) for thing in things[:cut]]
        held_out += [(topic, thing) for thing in things[cut:]]
    return asked, held_out


def conversation(name: str, rounds: list[tuple[str, str]]) -> dict[str, Any]:
    """One ShareGPT record of question-answer rounds."""
    turns = []
    for question, answer in rounds:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns}


def training_chats(asked: list[Asked], rng: random.Random) -> list[dict[str, Any]]:
    """Every way of asking about every thing, in conversations of one or two rounds."""
    rounds = [(question, topic.answer(thing)) for topic, thing in asked for question in topic.questions(thing)]
    rng.shuffle(rounds)
    chats = []
    while rounds:
        taken, rounds = rounds[: 1 + len(chats) % 2], rounds[1 + len(chats) % 2 :]
        chats.append(conversation(f"train-{len(chats)}", taken))
    return chats


def held_out_chats(held_out: list[Asked], rng: random.Random) -> list[dict[str, Any]]:
    """One question about each held-out thing, topics mixed."""
    rounds = [(rng.choice(topic.questions(thing)), topic.answer(thing)) for topic, thing in held_out]
    rng.shuffle(rounds)
    return [conversation(f"eval-{i}", [a_round]) for i, a_round in enumerate(rounds)]


def make_blank_model(texts: list[str], folder: Path) -> None:
    """Train a byte-level tokenizer on `texts` and save a small random Llama with it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=256
    )
    wrapped.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.06,  # near 1 / sqrt(hidden size): the default 0.02 takes twice the steps
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    logging.disable_progress_bar()  # of one file
    LlamaForCausalLM(config).save_pretrained(folder)


def main(folder: Path) -> None:
    """Write the four things into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    rows = plain_text(rng)
    asked, held_out = split_things(rng)
    chats = {"chat_train": training_chats(asked, rng), "chat_eval": held_out_chats(held_out, rng)}
    with open(folder / "base.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    for name, records in chats.items():
        (folder / f"{name}.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    questions = [t["value"] for record in chats["chat_train"] for t in record["conversations"]]
    texts = [row["instruction"] + row["output"] for row in rows]
    make_blank_model([*texts, *questions, *([CHAT_WORDS] * 50)], folder / "blank")
    print(
        f"{len(asked) + len(held_out)} facts: {len(rows)} rows of plain text, {len(chats['chat_train'])} chats about "
        f"{len(asked)} of them, {len(held_out)} questions about the others"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
