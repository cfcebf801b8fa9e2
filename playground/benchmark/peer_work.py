"""One trainer's part of a comparison, run by the Python of its own environment; `peers.ask` starts it.

Every trainer does the work through its own functions for training; nothing of it is rebuilt here. What it made of the
rows (ids and labels), or the loss of every step, comes back with the seconds, so that equal work is compared.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IGNORE = -100
Rows = list[tuple[list[int], list[int]]]  # (ids, labels) of each row


def messages(path: str) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in Path(path).read_text(encoding="utf-8").splitlines()]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.process_time()
    found = work()
    return time.process_time() - begun, found


def seen(rows: Rows) -> list[list[Any]]:
    """For each row: tokens, supervised tokens, digests of the ids and of the labels."""

    def digest(values: list[int]) -> str:
        return hashlib.sha256(repr(list(map(int, values))).encode()).hexdigest()[:16]

    return [[len(i), sum(v != IGNORE for v in labels), digest(i), digest(labels)] for i, labels in rows]


# --- tokenising and masking: CPU seconds, and what was made


def tokenise_here(asked: dict[str, Any]) -> tuple[dict[str, float], Rows]:
    import tempfile

    from fastchat.data.encoding.examples import tokenize_dialogues
    from fastchat.data.encoding.open_tokenizer import open_tokenizer
    from fastchat.data.rows.records import Records
    from fastchat.data.tokens.store import StoreWriter, make_shard, usable

    encoder, _ = open_tokenizer(asked["tokenizer"])
    chat_encoder = encoder.bind(encoder.choose(asked["template"]))
    dialogues = usable(list(Records([asked["data"]], on_bad_row="stop")))
    limit = asked["limit"]
    encoder.fast.prepare([chat_encoder.template.render(one).text for _, one in dialogues[:8]])  # as much data does
    list(tokenize_dialogues(dialogues[:20], chat_encoder, max_length=limit))
    core, made = timed(lambda: list(tokenize_dialogues(dialogues, chat_encoder, max_length=limit)))

    def store() -> None:
        with tempfile.TemporaryDirectory() as folder:
            writer = StoreWriter(Path(folder))
            writer.add(make_shard(dialogues, chat_encoder, overlong="truncate", max_length=limit))
            writer.close()

    with_store, _ = timed(store)
    texts = [chat_encoder.template.render(dialogue).text for _, dialogue in dialogues]
    raw, _ = timed(lambda: encoder.whole.encode_batch(texts))
    seconds = {"core": core, "with store": with_store, "encode_batch": raw}
    return seconds, [(list(example.input_ids), list(example.labels)) for example in made]


def tokenise_trl(asked: dict[str, Any]) -> tuple[dict[str, float], Rows]:
    trainer, seconds = _sft_trainer(asked, {"max_steps": 1, "per_device_train_batch_size": 1})
    made = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    return {"with map": seconds}, made


def _sft_trainer(asked: dict[str, Any], values: dict[str, Any]) -> tuple[Any, float]:
    """(TRL's trainer, the seconds of its preparation of the rows)."""
    from datasets import Dataset, load_dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(asked["tokenizer"])
    templates = json.loads((Path(__file__).parent / "marked_templates.json").read_text(encoding="utf-8"))
    tokenizer.chat_template = templates[asked["template"]]  # TRL masks by marks around the answers
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    seconds, prepare = [], SFTTrainer._prepare_dataset

    def measured(*args: Any, **kwargs: Any) -> Any:
        spent, found = timed(lambda: prepare(*args, **kwargs))
        seconds.append(spent)
        return found

    SFTTrainer._prepare_dataset = measured
    own = {"assistant_only_loss": True, "max_length": asked["limit"], "packing": False, "bf16": False}
    own |= {"gradient_checkpointing": False, "shuffle_dataset": False, "model_init_kwargs": {"dtype": "float32"}}
    config = SFTConfig(output_dir="trl-out", use_cpu=True, report_to=[], save_strategy="no", **own, **values)
    if asked["task"] == "start":  # as its users load a file: what is made of it is cached
        rows = load_dataset("json", data_files=asked["data"], split="train")
    else:
        rows = Dataset.from_list([{"messages": one} for one in messages(asked["data"])])
    trainer = SFTTrainer(model=asked["model"], args=config, train_dataset=rows, processing_class=tokenizer)
    return trainer, sum(seconds)


def sharegpt(path: str) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt"}
    turns = [[{"from": names[t["role"]], "value": t["content"]} for t in one] for one in messages(path)]
    return [{"id": str(i), "conversations": one} for i, one in enumerate(turns)]


def tokenise_fschat(asked: dict[str, Any]) -> tuple[dict[str, float], Rows]:
    from transformers import AutoTokenizer

    from fastchat.train.train import preprocess

    tokenizer = AutoTokenizer.from_pretrained(
        asked["model"], model_max_length=asked["limit"], padding_side="right", use_fast=True
    )
    tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # as its train.py does, where there is one
    rows = [row["conversations"] for row in sharegpt(asked["data"])]
    seconds, found = timed(lambda: preprocess(rows, tokenizer))
    made = []
    for ids, labels, mask in zip(found["input_ids"], found["labels"], found["attention_mask"], strict=True):
        length = int(mask.sum())
        made.append((ids[:length].tolist(), labels[:length].tolist()))
    return {"preprocess": seconds}, made


def tokenise_llamafactory(asked: dict[str, Any]) -> tuple[dict[str, float], Rows]:
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
    from llamafactory.hparams import DataArguments
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asked["tokenizer"])
    values = DataArguments(template=asked["llamafactory"], cutoff_len=asked["limit"])
    template = get_template_and_fix_tokenizer(tokenizer, values)
    work = SupervisedDatasetProcessor(template=template, tokenizer=tokenizer, processor=None, data_args=values)
    dialogues = messages(asked["data"])
    columns: dict[str, list[Any]] = {"_prompt": [one[:-1] for one in dialogues]}
    columns |= {"_response": [one[-1:] for one in dialogues]}
    columns |= {name: [""] * len(dialogues) for name in ("_system", "_tools")}
    columns |= {name: [None] * len(dialogues) for name in ("_images", "_videos", "_audios")}
    seconds, found = timed(lambda: work.preprocess_dataset(columns))
    return {"core": seconds}, list(zip(found["input_ids"], found["labels"], strict=True))


# --- steps: every batch is the whole file, so their order does not matter


def step_here(asked: dict[str, Any]) -> list[float]:
    from fastchat.train.status import attempt
    from fastchat.train.train import run

    words = {**_common(asked), "data_path": asked["data"], "conv_template": asked["template"]}
    words |= {"model_max_length": asked["limit"], "run_report": "none"}
    shutil.rmtree(words["output_dir"], ignore_errors=True)  # a finished run is not trained again
    code = attempt(lambda status: run(_words(words), status), words["output_dir"])
    if code:
        raise SystemExit(f"exit code {code}")
    lines = (Path(words["output_dir"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def step_trl(asked: dict[str, Any]) -> list[float]:
    values = {key: value for key, value in _common(asked).items() if key in _OF_TRANSFORMERS}
    trainer, _ = _sft_trainer(asked, values)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def step_fschat(asked: dict[str, Any]) -> list[float]:
    import transformers

    from fastchat.train import train

    Path("rows.json").write_text(json.dumps(sharegpt(asked["data"])), encoding="utf-8")
    words = {**_common(asked), "data_path": "rows.json", "model_max_length": asked["limit"], "save_strategy": "no"}
    words |= {"report_to": "none", "lazy_preprocess": True}
    made: list[Any] = []
    of_trainer = transformers.Trainer.train
    transformers.Trainer.train = lambda self, *args, **kwargs: (made.append(self), of_trainer(self, *args, **kwargs))[1]
    if not (Path(asked["model"]) / "tokenizer.model").is_file():  # it asks for the slow tokenizer, made from that file
        load = transformers.AutoTokenizer.from_pretrained
        transformers.AutoTokenizer.from_pretrained = lambda *args, **kwargs: load(*args, **{**kwargs, "use_fast": True})
    sys.argv = ["train.py", *_words(words)]
    try:
        train.train()
    except Exception as problem:  # saving fails where nothing is sharded; what was trained until then counts
        if not made or made[0].state.global_step < asked["steps"]:
            raise
        print(f"after training: {problem!r}", file=sys.stderr)
    return [row["loss"] for row in made[0].state.log_history if "loss" in row]


# --- a run of one step on many rows: nearly all of it is its start

start_here, start_trl = step_here, step_trl

_OF_TRANSFORMERS = (
    *("max_steps", "per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "weight_decay"),
    *("logging_steps", "warmup_steps", "optim"),
)


def _common(asked: dict[str, Any]) -> dict[str, Any]:
    """Settings of the run that all trainers know under these names."""
    return {
        "model_name_or_path": asked["model"],
        "output_dir": f"{asked['name']}-out",
        "per_device_train_batch_size": asked["batch"],
        "max_steps": asked["steps"],
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "logging_steps": 1,
        "optim": "adamw_torch",
        "use_cpu": True,
    }


def _words(values: dict[str, Any]) -> list[str]:
    return [str(word) for name, value in values.items() for word in (f"--{name}", value)]


def main() -> None:
    asked = json.loads(sys.argv[1])
    name, task = asked["name"], asked["task"]
    work = globals()[f"{task}_{name}"]
    if task == "tokenise":
        seconds, rows = work(asked)
        found: dict[str, Any] = {"seconds": seconds, "rows": seen(rows)}
    elif task == "start":  # timed from outside, and not even torch is imported before
        found = {"losses": work(asked)}
    else:
        ends = _note_steps()
        losses = work(asked)
        found = {"losses": losses, "seconds": [after - before for before, after in zip(ends, ends[1:], strict=False)]}
    Path(asked["answer"]).write_text(json.dumps(found), encoding="utf-8")


def _note_steps() -> list[float]:
    """A list to which torch adds the CPU seconds at the end of every step of an optimizer, whoever trains."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    ends: list[float] = []
    register_optimizer_step_post_hook(lambda *_: ends.append(time.process_time()))
    return ends


if __name__ == "__main__":
    main()
