"""Prefix trees: every common prefix once, the losses and gradients of separate rows, and packs planned for them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastchat.data.batches import packing_check, tree_mask
from fastchat.data.batches.packing import PackedDataset, pack_collate, plan_packs
from fastchat.data.batches.packing_check import check_tree, compare_packing
from fastchat.data.batches.prefix_tree import grow, tree_size
from fastchat.data.batches.shared_packs import packs_of, plan_shared_packs
from fastchat.data.tokens.dataset import ChatDataset, WithoutTails
from fastchat.data.tokens.store import TokenStore
from fastchat.errors import SettingsError
from fastchat.train.head import ChunkedCrossEntropy
from fastchat.train.loss import count_tokens, loss_sum
from fastchat.train.packed import _packs
from fastchat.train.tree_support import why_no_tree
from tests.tiers import pairs

ROWS = st.lists(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=9), min_size=1, max_size=8)


def example(ids: Any, learned: Any = None, index: int = 0) -> dict[str, Any]:
    ids = np.asarray(ids, dtype=np.int32)
    labels = ids if learned is None else np.where(np.asarray(learned, dtype=bool), ids, -100)
    return {"input_ids": ids, "labels": labels.astype(np.int32), "index": index}


def dataset(examples: list[dict[str, Any]]) -> ChatDataset:
    """Examples as the store keeps them; those with the same index are one dialogue."""
    lengths = [len(one["input_ids"]) for one in examples]
    arrays = {
        "ids": np.concatenate([one["input_ids"] for one in examples]),
        "labels": np.concatenate([one["labels"] for one in examples]),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "index": np.array([one["index"] for one in examples]),
        "part": np.zeros(len(examples), np.int32),
        "supervised": np.array([(one["labels"] != -100).sum() for one in examples]),
        "digests": np.zeros(len(examples), np.uint64),
    }
    return ChatDataset(TokenStore(arrays))


def answers_apart(rng: np.random.Generator, vocabulary: int, turns: int, start: Any = (), index: int = 0) -> list[Any]:
    """One example per answer, of a dialogue whose history has the answers without what was thought before."""
    history, made = [*start], []
    for _ in range(turns):
        question, thought, answer = (rng.integers(0, vocabulary, rng.integers(3, 9)).tolist() for _ in range(3))
        prompt = history + question
        made.append(example(prompt + thought + answer, [0] * len(prompt) + [1] * len(thought + answer), index))
        history = prompt + answer
    return made


@given(ROWS)
def test_a_tree_holds_every_example_and_every_prefix_once(rows):
    examples = [example([token for token, _ in row], [learned for _, learned in row]) for row in rows]
    tree = grow(examples)
    texts = [tuple(one["input_ids"].tolist()) for one in examples]
    prefixes = {text[:n] for text in texts for n in range(1, len(text) + 1)}
    assert len(tree) == len(prefixes) == tree_size([one["input_ids"] for one in examples])
    counted = dict.fromkeys(prefixes, 0)
    for text, one in zip(texts, examples, strict=True):
        for place in np.flatnonzero(one["labels"][1:] != -100) + 1:
            counted[text[: place + 1]] += 1
    found = {}
    for place in range(len(tree)):
        path = [place]
        while tree.positions[path[-1]]:
            path.append(int(tree.parents[path[-1]]))
        seen = [key for key in range(len(tree)) if key <= place < tree.ends[key]]
        assert seen == path[::-1] and tree.positions[place] == len(path) - 1
        found[tuple(tree.ids[seen].tolist())] = int(tree.counts[place])
    assert found == counted
    assert tree.labels.tolist() == [i if n else -100 for i, n in zip(tree.ids, tree.counts, strict=True)]


def test_counts_are_of_the_tokens_computed_and_of_every_supervision():
    examples = [example([1, 2, 3, 4], [0, 0, 1, 1]), example([1, 2, 3, 5, 6], [0, 0, 1, 1, 0]), example([1, 2, 3])]
    packs = packs_of(lambda i: examples[i]["input_ids"], [np.arange(3)], 16)
    batch = pack_collate([PackedDataset(examples, packs)[0], example([7, 8, 9])], pad_token_id=0)
    assert batch["counts"].tolist() == [[0, 1, 3, 1, 1, 0], [0, 1, 1, 0, 0, 0]]
    assert count_tokens([batch]).tolist() == [2 + 2 + 2 + 2, 6 + 3]
    assert (packs.num_tokens.tolist(), packs.separate, packs.fill) == ([6], 12, 6 / 16)


# ---- on models


def compared(model: Any, examples: list[Any], loss: Any = loss_sum, groups: int = 1, **how: Any) -> Any:
    parts = np.array_split(np.arange(len(examples)), groups)
    packs = packs_of(lambda i: examples[i]["input_ids"], parts, 512)
    return compare_packing(model, examples, loss, pad_token_id=0, capacity=512, packs=packs, **how)


MODELS = {
    "llama": {},
    "gemma": {},
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
}
CASES = [case for case in pairs(MODELS, ("sdpa", "eager")) if case.values != ("gemma2", "sdpa")]  # it has none


@pytest.fixture(scope="module")
def load(tiny_model_dir):
    from transformers import AutoModelForCausalLM

    def make(arch, attention="sdpa"):
        folder = tiny_model_dir(arch, **MODELS[arch])
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)

    return make


@pytest.mark.parametrize(("arch", "attention"), CASES)
def test_loss_and_gradients_are_those_of_separate_rows(load, arch, attention):
    """Dialogues of up to 100 tokens, windows of 8: only windows measured in positions give this."""
    model = load(arch, attention)
    assert why_no_tree(model.config, attention) is None
    vocabulary, rng = model.config.vocab_size, np.random.default_rng(0)
    system = rng.integers(0, vocabulary, 12)
    examples = answers_apart(rng, vocabulary, 5, system) + answers_apart(rng, vocabulary, 4, system)
    examples += [examples[0], example(system)]  # one supervised twice; one that is the beginning of others
    assert check_tree(model, vocab_size=vocabulary) < 1e-6
    ChunkedCrossEntropy(model, rows=7)
    chunked = functools.partial(loss_sum, chunked=True)
    smooth = functools.partial(loss_sum, label_smoothing=0.1)
    for report in (
        compared(model, examples),
        compared(model, examples, chunked, groups=3, batch_size=2),
        compared(model, examples, smooth, groups=2, batch_size=2, flat=True),
        compared(model, examples, chunked, checkpointing=True),
    ):
        assert report.loss_error < 1e-6 and report.gradient_error < 1e-5, report.line


BROKEN = {
    "ends": lambda ends, positions: (torch.full_like(ends, ends.shape[1]), positions),  # branches see each other
    "siblings": lambda ends, positions: (torch.minimum(ends, ends.new_tensor(60)), positions),  # some lose the root
    "positions": lambda ends, positions: (ends, torch.arange(ends.shape[1])[None].expand_as(ends)),  # of the row
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_mask_is_noticed(load, monkeypatch, how):
    model = load("mistral")
    right = tree_mask._of_tree
    monkeypatch.setattr(tree_mask, "_of_tree", lambda make, *given: right(make, *BROKEN[how](*given)))
    examples = answers_apart(np.random.default_rng(0), model.config.vocab_size, 6)
    report = compared(model, examples)
    assert not report.exact and report.gradient_error > 1e-3
    with pytest.raises(
        SettingsError, match=r"does not compute what it computes in separate rows.*--packing_prefix_tree"
    ):
        check_tree(model, vocab_size=model.config.vocab_size)


def test_wrong_counts_are_noticed(load, monkeypatch):
    model = load("llama")
    rows = [example([1, 2, 3, 4]), example([1, 2, 3, 5])]
    assert compared(model, rows).exact
    once = packing_check.pack_collate
    monkeypatch.setattr(
        packing_check, "pack_collate", lambda *a, **k: (b := once(*a, **k)) | {"counts": b["counts"].clamp(max=1)}
    )
    assert compared(model, rows).loss_error > 0.1


@pytest.mark.thorough
def test_flex_attention_gets_the_same_mask(load, monkeypatch):
    """Its kernel as torch runs it without compiling, forward only, in one row for all packs: as on a GPU."""
    from torch.nn.attention import flex_attention
    from transformers import masking_utils
    from transformers.integrations import flex_attention as integration

    made = functools.partial(flex_attention.create_block_mask)
    monkeypatch.setattr(masking_utils, "create_block_mask", lambda *a, **k: made(*a, **{**k, "_compile": False}))
    plain = lambda q, k, v, training=False, **more: flex_attention.flex_attention(q, k, v, **more)  # noqa: E731
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", plain)
    models = {name: load("mistral", name).eval() for name in ("sdpa", "flex_attention")}
    rng, vocabulary = np.random.default_rng(0), models["sdpa"].config.vocab_size
    examples = [one for i in range(4) for one in answers_apart(rng, vocabulary, 5, index=i)]
    packed = PackedDataset(examples, packs_of(lambda i: examples[i]["input_ids"], np.split(np.arange(20), 4), 512))
    batch = pack_collate([packed[p] for p in range(4)], pad_token_id=0, flat=True)
    del batch["seq_lengths"]
    assert batch["input_ids"].shape[0] == 1 and batch["input_ids"].shape[1] > 128
    with torch.no_grad():
        losses = [float(loss_sum(model, batch)) for model in models.values()]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_which_models_cannot_have_trees():
    from transformers import AutoConfig

    llama = AutoConfig.for_model("llama")
    assert "cannot leave out what is on another branch" in why_no_tree(llama, "flash_attention_2")
    routed = AutoConfig.for_model("mixtral", output_router_logits=True)
    assert "adds a loss over all tokens" in why_no_tree(routed, "sdpa")
    assert why_no_tree(AutoConfig.for_model("mixtral"), "sdpa") is None
    assert "makes its attention mask itself" in why_no_tree(AutoConfig.for_model("xlnet"), "eager")
    gemma3 = AutoConfig.for_model("gemma3")
    assert why_no_tree(gemma3, "flex_attention") is None


# ---- plans


def random_ids(rng: np.random.Generator, num: int) -> list[int]:
    return rng.integers(5, 30000, num).tolist()


def as_lists(packs: Any) -> list[list[int]]:
    return [packs[p].tolist() for p in range(len(packs))]


def checked(examples: ChatDataset, capacity: int) -> Any:
    data = WithoutTails(examples)
    packs = plan_shared_packs(data, capacity)
    assert packs is not None and sorted(packs.members.tolist()) == list(range(len(data)))
    for members, size in zip(as_lists(packs), packs.num_tokens, strict=True):
        assert members == sorted(members) and size == tree_size([data.ids(i) for i in members]) <= capacity
    assert [pack[0] for pack in as_lists(packs)] == sorted(pack[0] for pack in as_lists(packs))
    assert packs.fingerprint == plan_shared_packs(data, capacity).fingerprint
    return packs


def test_a_dialogue_is_one_tree_and_one_that_is_too_long_several():
    rng = np.random.default_rng(0)
    data = dataset([one for i in range(20) for one in answers_apart(rng, 30000, 8, random_ids(rng, 40), i)])
    packs = checked(data, 1024)
    assert packs.separate > 3 * packs.num_tokens.sum() and packs.fill > 0.8
    starts = data.dialogue_starts
    assert all(
        set(range(s, s + 8)) <= set(pack) or not {*range(s, s + 8)} & {*pack}
        for pack in as_lists(packs)
        for s in starts
    )
    cut = checked(data, 200)
    assert len(cut) > 20 and packs.num_tokens.sum() < cut.num_tokens.sum() < cut.separate / 2


def test_dialogues_with_the_same_system_prompt_share_it_in_every_pack():
    rng = np.random.default_rng(1)
    prompts = [random_ids(rng, 75), random_ids(rng, 130), []]
    rows = [example([*prompts[i % 3], *random_ids(rng, 60 + i % 90)], index=i) for i in range(600)]
    data = dataset(rows)
    packs = checked(data, 1024)
    plain = plan_packs(data.lengths, 1024)
    assert len(packs) < 0.7 * len(plain) and packs.fill > 0.96
    least = sum(len(row["input_ids"]) - len(prompts[i % 3]) for i, row in enumerate(rows))
    held = sum(len(prompts[p]) for pack in as_lists(packs) for p in {i % 3 for i in pack})
    assert packs.num_tokens.sum() == least + held


def test_several_answers_to_one_question_are_one_tree():
    rng = np.random.default_rng(5)
    rows = []
    for question in (random_ids(rng, 90) for _ in range(50)):
        rows += [[*question, *random_ids(rng, 100)] for _ in range(4)]
    order = rng.permutation(200)
    data = dataset([example(rows[row], index=i) for i, row in enumerate(order)])
    packs = checked(data, 1024)
    assert packs.num_tokens.sum() == 50 * (90 + 4 * 100)
    for pack in as_lists(packs):
        assert set(np.bincount(order[pack] // 4)) <= {0, 4}


def test_without_common_prefixes_the_packs_are_what_they_were():
    """And so are the batches, bit for bit. A beginning of a few tokens (BOS, a role) is not worth a tree."""
    rng = np.random.default_rng(2)
    data = dataset([example([1, 2, 3, *random_ids(rng, 50 + i % 60)], index=i) for i in range(200)])
    assert plan_shared_packs(WithoutTails(data), 512) is None
    found, note = _packs(data, 512, 7, True, None)
    before = plan_packs(data.lengths, 512, 7)
    assert (found.fingerprint, note) == (before.fingerprint, "") and found.separate is None
    names = pack_collate([PackedDataset(data, found)[0]], pad_token_id=0).keys()
    assert names == {"input_ids", "labels", "position_ids", "seq_lengths"}


def test_separate_rows_are_said_where_trees_would_save_and_the_kernel_cannot():
    rng = np.random.default_rng(3)
    data = dataset([one for i in range(9) for one in answers_apart(rng, 30000, 8, index=i)])
    found, note = _packs(data, 512, 0, True, "flash_attention_2 cannot")
    assert found.fingerprint == plan_packs(data.lengths, 512, 0).fingerprint
    assert note.startswith("common prefixes are computed in every row, because flash_attention_2 cannot (")
    assert _packs(data, 512, 0, False, None)[1] == ""


def test_a_long_prompt_of_a_few_dialogues_is_found():
    rng = np.random.default_rng(4)
    system = random_ids(rng, 400)
    data = dataset([example([*system, *random_ids(rng, 140)], index=i) for i in range(40)])
    packs = checked(data, 2048)
    assert packs.num_tokens.sum() == 40 * 140 + 400 * len(packs) and len(packs) == 4


# ---- what follows the last supervised token


@given(ROWS)
def test_nothing_after_the_last_supervised_token_of_an_example_is_computed(rows):
    examples = [example([t for t, _ in row], [s for _, s in row], index=i) for i, row in enumerate(rows)]
    whole = dataset(examples)
    cut = WithoutTails(whole)
    kept = [max((i + 1 for i, (_, s) in enumerate(row) if s), default=len(row)) for row in rows]
    assert whole.ends.tolist() == cut.lengths.tolist() == kept == [len(cut.ids(i)) for i in range(len(cut))]
    for i, length in enumerate(kept):
        assert cut[i]["input_ids"].tolist() == whole[i]["input_ids"][:length].tolist()
        assert cut[i]["labels"].tolist() == whole[i]["labels"][:length].tolist() and cut[i]["index"] == i
    some = np.arange(0, len(rows), 2)
    assert ChatDataset(whole.store, some).ends.tolist() == kept[::2]
    cut.whole = True
    assert cut.lengths.tolist() == whole.lengths.tolist() and len(cut[0]["labels"]) == len(rows[0])
