"""The published chat templates of ../shared, through everything that the small ones of this folder go through."""

from __future__ import annotations

import importlib.util
import io
from contextlib import redirect_stdout

import pytest
from transformers import AutoTokenizer

from fastchat.data.encoding.cross_check import LabelCrossCheck
from fastchat.data.encoding.examples import tokenize_dialogues
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.encoding.properties import prove
from fastchat.data.encoding.saved_template import compare_template, install_template
from tests.data.test_own_template_kinds import DIALOGUES, REASONING, TOOLS, generated

# Stops, and what the template cannot show.
PUBLISHED = {
    "qwen2_5": (("<|im_end|>",), REASONING),
    "qwen3": (("<|im_end|>",), set()),
    "qwen3_5_think": (("<|im_end|>",), set()),
    "deepseekv3": (("<｜end▁of▁sentence｜>",), set()),
    "glm4moe": (("<|user|>", "<|observation|>"), set()),
    "gemma3": (("<end_of_turn>",), TOOLS | REASONING),
    "llama3_1": (("<|eot_id|>",), REASONING | {"parallel"}),
    "phi3_5": (("<|end|>",), TOOLS | REASONING),
    "cohere": (("<|END_OF_TURN_TOKEN|>",), TOOLS | REASONING),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name, shared, tmp_path):
    path = shared / "chat_templates" / "with_template.py"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    spec = importlib.util.spec_from_file_location("with_template", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with redirect_stdout(io.StringIO()):
        module.main(str(path.with_name(f"{name}.jinja")), str(tmp_path))
    encoder, _ = open_tokenizer(str(tmp_path))
    chat_encoder = encoder.bind(encoder.choose("tokenizer"))
    stops, lacks = PUBLISHED[name]
    assert chat_encoder.template.stops == stops
    assert "labels agree" in prove(chat_encoder)
    dialogues = [dialogue for kind, dialogue in DIALOGUES.items() if kind not in lacks]
    for dialogue in dialogues:
        seen = {}
        for rendered in chat_encoder.template.renderings(dialogue):
            for turn, (before, text) in generated(rendered).items():
                assert before == chat_encoder.template.text(rendered.dialogue.before(turn), True)
                seen[turn] = text
        for turn, said in enumerate(dialogue.turns):
            if said.role == "assistant":
                assert said.text in seen[turn] and (said.reasoning or "") in seen[turn]
                assert seen[turn].endswith(stops)
    examples = list(tokenize_dialogues(enumerate(dialogues), chat_encoder, max_length=1 << 20))
    samples = ((dialogues[x.index], x.input_ids, x.labels, x.part) for x in examples)
    assert LabelCrossCheck(chat_encoder).check(samples).records == len(examples)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    install_template(tokenizer, chat_encoder)
    assert compare_template(tokenizer, chat_encoder, dialogues) == len(dialogues)
