"""Upstream's interface as other people's programs use it: templates by path, loading, generating, training data."""

from __future__ import annotations

import argparse
import json
import shutil
import threading
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat.conversation import get_template
from fastchat.errors import DataError
from fastchat.model import add_model_args, get_conversation_template, load_model
from fastchat.model import model_adapter as adapters
from fastchat.train import doors
from tests import builders

CHOICES = json.loads((Path(__file__).parent / "templates.json").read_text(encoding="utf-8"))
ROWS = builders.chat_rows(6, 2)


@pytest.fixture(scope="module")
def loaded(tiny_model_dir: Callable[..., Path]) -> tuple[Any, Any]:
    return load_model(str(tiny_model_dir("llama", "metaspace_bos")), device="cpu")


@pytest.mark.parametrize("path", CHOICES)
def test_a_path_has_upstream_s_adapter_and_template(path: str) -> None:
    found = type(adapters.get_model_adapter(path)).__name__, get_conversation_template(path).name
    assert list(found) == CHOICES[path]


def test_a_path_that_upstream_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert get_conversation_template("meta-llama/Llama-3.1-8B-Instruct").name == "llama-3.1", "today's families"
    assert get_conversation_template("some-org/unheard-of").name == "one_shot"
    assert "one_shot" in capsys.readouterr().err


def test_a_result_s_template_is_the_one_it_was_trained_with(tmp_path: Path) -> None:
    from fastchat.checkpoint.record import TrainingRecord

    template = {"name": "zephyr", "definition": get_template("zephyr").to_dict()}
    fields = TrainingRecord.__dataclass_fields__
    record = {name: template if name == "template" else None for name in fields if name != "files"}
    (tmp_path / "training.json").write_text(json.dumps({**record, "format": 1}))
    assert get_conversation_template(str(tmp_path)).name == "zephyr"


def test_an_adapter_of_one_s_own_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(adapters.BaseModelAdapter):
        def match(self, model_path: str) -> bool:
            return "my-model" in model_path

        def get_default_conv_template(self, model_path: str) -> Any:
            return adapters.get_conv_template("zephyr")

    monkeypatch.setattr(adapters, "model_adapters", [])
    adapters.register_model_adapter(Mine)
    assert get_conversation_template("org/my-model-7b").name == "zephyr"


def test_what_load_model_does_not_do_is_said(tiny_model_dir: Callable[..., Path]) -> None:
    path = str(tiny_model_dir("llama", "metaspace_bos"))
    for asked in ({"load_8bit": True}, {"num_gpus": 2}, {"revision": "v2"}, {"cpu_offloading": True}):
        with pytest.raises(NotImplementedError, match=f"{next(iter(asked))}.*(instead|download)"):
            load_model(path, "cpu", **asked)  # pyright: ignore
    parser = argparse.ArgumentParser()
    add_model_args(parser)
    assert vars(parser.parse_args(["--num-gpus", "2"]))["num_gpus"] == 2


def test_a_stream_is_what_generate_gives(loaded: tuple[Any, Any]) -> None:
    from fastchat.serve.inference import generate_stream

    model, tokenizer = loaded
    conv = get_conversation_template("vicuna")
    conv.append_message(conv.roles[0], "What is 2 + 2?")
    conv.append_message(conv.roles[1], None)
    params = {"prompt": conv.get_prompt(), "temperature": 0.0, "max_new_tokens": 12, "echo": False}
    pieces = list(generate_stream(model, tokenizer, params, "cpu", 512))
    ids = tokenizer(conv.get_prompt(), return_tensors="pt").input_ids
    whole = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id)
    text = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    assert pieces[-1]["text"] == text and pieces[-1]["usage"]["prompt_tokens"] == ids.shape[1]
    assert all(text.startswith(piece["text"]) for piece in pieces)
    assert [p["finish_reason"] for p in pieces[:-1]] == [None] * (len(pieces) - 1) and pieces[-1]["finish_reason"]
    stop = text[len(text) // 2 :][:2]
    cut = list(generate_stream(model, tokenizer, {**params, "stop": [stop]}, "cpu", 512))[-1]
    assert cut["finish_reason"] == "stop" and cut["text"] == text[: text.index(stop)]


def test_a_stream_that_is_left_ends_its_thread_and_an_error_arrives(loaded: tuple[Any, Any]) -> None:
    from fastchat.serve.inference import generate_stream

    model, tokenizer = loaded
    before = threading.active_count()
    stream = generate_stream(model, tokenizer, {"prompt": "a", "max_new_tokens": 400, "temperature": 0}, "cpu", 512, 1)
    next(stream)
    stream.close()
    assert threading.active_count() == before
    with pytest.raises(IndexError):
        list(generate_stream(model, _Beyond(tokenizer), {"prompt": "a"}, "cpu", 512))
    with pytest.raises(NotImplementedError, match="logprobs"):
        list(generate_stream(model, tokenizer, {"prompt": "a", "logprobs": 1}, "cpu", 512))


class _Beyond:
    """A tokenizer whose ids are beyond the model's embedding."""

    def __init__(self, tokenizer: Any):
        self.eos_token_id, self.bos_token_id, self.pad_token_id = tokenizer.eos_token_id, None, 0

    def __call__(self, text: str) -> Any:
        return argparse.Namespace(input_ids=[10**6])


def test_chat_loop(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    from fastchat.serve.inference import ChatIO, chat_loop

    class Scripted(ChatIO):
        def __init__(self) -> None:
            saved = tmp_path / "x"
            lines = ["Hi", f"!!save {saved}", "!!remove", "!!regen", "!!load", f"!!load {saved}", "!!regen", "!!reset"]
            self.lines, self.shown = iter([*lines, "Again", "!!exit"]), []

        def prompt_for_input(self, role: str) -> str:
            return next(self.lines)

        def prompt_for_output(self, role: str) -> None:
            self.shown.append(role)

        def stream_output(self, output_stream: Iterable[dict[str, Any]]) -> str:
            self.shown.append([piece["finish_reason"] for piece in output_stream][-1])
            return "an answer"

        def print_output(self, text: str) -> None:
            self.shown.append(text)

    io, path = Scripted(), str(tiny_model_dir("llama", "metaspace_bos"))
    chat_loop(path, "cpu", 1, "", None, False, False, "vicuna_v1.1", None, 0.0, 1.0, 4, io, debug=False)
    answer = ["ASSISTANT", io.shown[1]]
    assert io.shown[1] in ("length", "stop")
    assert io.shown[:3] == [*answer, f"saved {tmp_path / 'x.json'}"]
    nothing, usage, *loaded = io.shown[3:9]
    assert "nothing to take back" in nothing and usage == "error: usage: !!load FILE"
    assert loaded == ["USER", "Hi", "ASSISTANT", "an answer"]
    assert io.shown[9] == io.shown[11] == "ASSISTANT" and len(io.shown) == 13, (
        "the loaded message, and one after !!reset"
    )


def test_training_data_has_the_ids_and_labels_of_training(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    from fastchat.data.encoding.examples import tokenize_dialogue
    from fastchat.data.encoding.text_encoder import TextEncoder
    from fastchat.data.rows.formats import parse_row
    from fastchat.train import train_with_template
    from fastchat.train.train import DataArguments, LazySupervisedDataset, make_supervised_data_module, preprocess

    tokenizer = loaded[1]
    tokenizer.model_max_length = 96
    sources = [row["conversations"] for row in ROWS] + [[{"from": "human", "value": "Nobody answers."}]]
    made = preprocess(sources, tokenizer)
    assert {name: tuple(t.shape) for name, t in made.items()} == dict.fromkeys(made, (7, 96))
    bound = TextEncoder.from_tokenizer(tokenizer).bind(get_template("vicuna_v1.1"))
    dialogue = parse_row(ROWS[0]).dialogue
    assert dialogue is not None
    wanted = tokenize_dialogue(dialogue, bound, max_length=96)
    length = len(wanted.input_ids)
    assert made["input_ids"][0, :length].tolist() == wanted.input_ids
    assert made["labels"][0].tolist() == wanted.labels + [-100] * (96 - length)
    assert made["attention_mask"][0].sum() == length and (made["labels"][6] == -100).all()

    path = builders.write_rows(tmp_path / "d.json", ROWS)
    module = make_supervised_data_module(tokenizer, DataArguments(data_path=str(path), lazy_preprocess=True))
    assert isinstance(module["train_dataset"], LazySupervisedDataset) and module["eval_dataset"] is None
    assert torch.equal(module["train_dataset"][0]["labels"], made["labels"][0])
    other = train_with_template.preprocess(sources[:1], tokenizer, "HuggingFaceH4/zephyr-7b-beta")
    assert not torch.equal(other["input_ids"], made["input_ids"][:1])
    split = train_with_template.make_supervised_data_module(tokenizer, DataArguments(str(path)), "vicuna", 0.5)
    assert (len(split["train_dataset"]), len(split["eval_dataset"])) == (3, 3)
    with pytest.raises(DataError, match="conversation 0: unknown role"):
        preprocess([[{"from": "alien", "value": "x"}]], tokenizer)
    called = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
    with pytest.raises(DataError, match="conversation 0: tools that the template does not show: a call of 'f'"):
        preprocess([[{"from": "human", "value": "x"}, called]], tokenizer)


def test_arguments_parse_and_a_star_import_works() -> None:
    import transformers

    scope: dict[str, Any] = {}
    exec("from fastchat.train.train import *", scope)
    classes = (scope["ModelArguments"], scope["DataArguments"], scope["TrainingArguments"])
    words = ["--data_path", "d.json", "--output_dir", "o", "--model_max_length", "64", "--use_cpu", "True"]
    _, data, training = transformers.HfArgumentParser(classes).parse_args_into_dataclasses(words)  # pyright: ignore
    assert (data.data_path, data.lazy_preprocess, training.model_max_length) == ("d.json", False, 64)


@pytest.mark.parametrize("module", ["train", "train_lora"])
def test_a_function_that_is_replaced_is_not_silently_ignored(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = import_module(f"fastchat.train.{module}")
    monkeypatch.setitem(vars(command), "make_supervised_data_module", print)
    with pytest.raises(NotImplementedError, match="make_supervised_data_module was replaced"):
        command.train()


def test_the_state_of_an_adapter() -> None:
    from fastchat.train.train_lora import get_peft_state_maybe_zero_3

    names = ("q.lora_A.default.weight", "q.base_layer.bias", "k.bias", "k.weight")
    named = [(name, torch.zeros(1)) for name in names]
    kept = {bias: list(get_peft_state_maybe_zero_3(iter(named), bias)) for bias in ("none", "all", "lora_only")}
    assert kept == {"none": list(names[:1]), "all": list(names[:3]), "lora_only": list(names[:2])}
    with pytest.raises(NotImplementedError):
        get_peft_state_maybe_zero_3(named, "some")


@pytest.mark.parametrize(
    ("door", "words", "added"),
    [
        ("train_mem", ["--seed", "1"], ["--flash_attn", "True"]),
        ("train_mem", ["--flash-attn=False"], []),
        ("train_mem", ["recipe.yaml", "--seed", "1"], []),
        ("train_xformers", ["--seed", "1"], []),
        ("train_baichuan", ["--seed", "1"], ["--conv_template", "vicuna_v1.1"]),
        ("train_yuan2", ["--seed", "1"], ["--conv_template", "yuan2"]),
        ("train_with_template", ["--model_name_or_path", "01-ai/Yi-34B-Chat"], ["--conv_template", "Yi-34b-chat"]),
        ("train_with_template", ["--model_name_or_path", "m", "--conv_template", "zephyr"], []),
        ("train_with_template", ["--model_name_or_path", "m", "--conv_template_file", "t.py"], []),
    ],
)
def test_upstream_s_commands_train(
    monkeypatch: pytest.MonkeyPatch, door: str, words: list[str], added: list[str]
) -> None:
    import importlib

    module, seen = importlib.import_module(f"fastchat.train.{door}"), []
    monkeypatch.setattr(module.full, "main", seen.append)
    module.main(words)
    assert seen == [[*added, *words]]
    assert doors.given(["--a-b", "--c=1"], "a_b") == "" and doors.given(["--c=1"], "a_b") is None


def test_reading_mt_bench(tmp_path: Path) -> None:
    from fastchat.llm_judge.common import load_model_answers, load_questions
    from fastchat.llm_judge.gen_model_answer import reorg_answer_file

    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"question_id": i, "n": n}) + "\n" for n, i in enumerate((3, 1, 3))))
    assert [q["question_id"] for q in load_questions(str(path), 1, None)] == [1, 3]
    reorg_answer_file(str(path))
    assert load_model_answers(str(tmp_path))["m"] == {1: {"question_id": 1, "n": 1}, 3: {"question_id": 3, "n": 2}}


def test_patches_of_attention_change_nothing_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    from fastchat.train.llama2_flash_attn_monkey_patch import replace_llama_attn_with_flash_attn

    replace_llama_attn_with_flash_attn()
    assert "attn_implementation" in capsys.readouterr().err


def test_small_helpers() -> None:
    from fastchat import utils

    assert utils.is_partial_stop("Hi </", "</s>") and not utils.is_partial_stop("Hi", "</s>")
    assert utils.str_to_torch_dtype("bfloat16") is torch.bfloat16 and utils.str_to_torch_dtype(None) is None
    assert utils.get_context_length(argparse.Namespace(seq_length=77)) == 77
    assert shutil.which("python3") is None or utils.run_cmd("exit 3") == 3
    assert get_conversation_template("vicuna").to_gradio_chatbot() == []
    with pytest.raises(NotImplementedError, match="images are not supported"):
        get_conversation_template("vicuna").convert_image_to_base64()
