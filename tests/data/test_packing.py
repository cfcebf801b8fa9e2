"""Packs are full, planned fast and reproducibly; and a packed row computes exactly what its dialogues compute alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastchat.conversation import get_template
from fastchat.data.batches.packing import PackedDataset, _best_fit, check_packable, pack_collate, plan_packs
from fastchat.data.batches.packing_check import check_no_leak, compare_packing
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.rows.records import load_dialogues
from fastchat.errors import DataError, SettingsError
from fastchat.train.loss import loss_sum
from fastchat.train.sampling import DUMMY, GlobalBatchSampler, WithDummy
from tests.data.in_memory import build_store

LENGTHS = st.lists(st.integers(1, 64), max_size=200)


def as_lists(packs):
    return [packs[p].tolist() for p in range(len(packs))]


def one_pack(examples):
    return PackedDataset(examples, plan_packs([len(e["input_ids"]) for e in examples], 64))[0]


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(0, 3))
def test_every_example_is_in_exactly_one_pack_that_holds_it(lengths, seed):
    packs = plan_packs(lengths, 64, seed)
    assert sorted(packs.members.tolist()) == list(range(len(lengths)))
    for p, members in enumerate(as_lists(packs)):
        assert members == sorted(members) and members
        assert sum(lengths[i] for i in members) == packs.num_tokens[p] <= 64
    assert [pack[0] for pack in as_lists(packs)] == sorted(pack[0] for pack in as_lists(packs))
    assert as_lists(packs) == as_lists(plan_packs(lengths, 64, seed))
    assert len(packs) == len(plan_packs(lengths, 64, seed + 1))
    assert packs.fill <= 1 and len(packs) >= sum(lengths) / 64


def one_by_one(descending, capacity):
    """Best-fit as the books have it: the rooms that are left, ascending."""
    rooms = []
    for length in descending:
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= length
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@settings(max_examples=200, deadline=None)
@given(LENGTHS)
def test_best_fit_is_what_placing_one_after_the_other_gives(lengths):
    descending = np.array(sorted(lengths, reverse=True), dtype=np.int64)
    pack_of, num_packs = _best_fit(descending, 64)
    used = np.bincount(pack_of, weights=descending, minlength=num_packs)
    assert sorted((64 - used).astype(int).tolist()) == one_by_one(descending.tolist(), 64)


@pytest.mark.parametrize(
    ("name", "fill"), [("normal", 0.999), ("lognormal", 0.999), ("uniform", 0.995), ("narrow", 0.99)]
)
def test_a_hundred_thousand_lengths(name, fill):
    rng = np.random.default_rng(0)
    lengths = {
        "normal": np.clip(rng.normal(230, 80, 100_000), 20, 4096).astype(int),
        "lognormal": np.clip(rng.lognormal(6, 1, 100_000), 1, 4096).astype(int),
        "uniform": rng.integers(1, 4097, 100_000),
        "narrow": rng.integers(200, 400, 100_000),
    }[name]
    packs = plan_packs(lengths, 4096)
    assert packs.fill >= fill
    assert packs.num_tokens.max() <= 4096 and packs.num_tokens.sum() == lengths.sum()
    assert np.array_equal(np.sort(packs.members), np.arange(100_000))


def test_lengths_without_anything_short_are_packed_tightly_too():
    """Best-fit-decreasing alone leaves more than 1 % empty here."""
    lengths = np.random.default_rng(1).integers(200, 400, 6000)
    _, without = _best_fit(-np.sort(-lengths), 4096)
    assert lengths.sum() / (without * 4096) < 0.985
    assert plan_packs(lengths, 4096).fill >= 0.99


@pytest.mark.parametrize(("tokenizer", "template"), [("llama-2", "vicuna_v1.1"), ("gemma", "gemma")])
def test_fill_on_gsm8k_multiturn(shared, tokenizer, template):
    encoder, _ = open_tokenizer(str(shared / "tokenizers" / tokenizer))
    records = load_dialogues([str(shared / "data" / "gsm8k_multiturn.jsonl")]).records[:2000]
    chat_encoder = encoder.bind(get_template(template))
    store, _ = build_store(records, chat_encoder, max_length=4096, overlong="error")
    packs = plan_packs(store.lengths, 4096)
    assert packs.fill >= 0.99, packs.line


def test_another_seed_puts_others_together():
    lengths = [10] * 40
    first, second = as_lists(plan_packs(lengths, 40, 0)), as_lists(plan_packs(lengths, 40, 1))
    assert len(first) == len(second) == 10 and sorted(first) != sorted(second)


def test_a_dialogue_longer_than_a_pack_is_an_error():
    with pytest.raises(DataError, match=r"2 examples do not fit into a pack of 8 tokens \(the longest has 11\)"):
        plan_packs([3, 9, 8, 11], 8)


def test_nothing_to_pack():
    packs = plan_packs([], 8)
    assert len(packs) == 0 and packs.fill == 0 and packs.line.startswith("packing: 0 examples in 0 packs")


def test_importing_needs_no_torch():
    modules = "fastchat.data.batches.packing, fastchat.data.batches.packing_check"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def example(index, *ids, labels=None):
    ids = np.array(ids, dtype=np.int32)
    return {"input_ids": ids, "labels": ids if labels is None else np.array(labels, np.int32), "index": index}


@pytest.fixture
def packed():
    dataset = [example(4, 5, 6), example(7, 8, labels=[8]), example(9, 1, 2, 3, labels=[-100, 2, 3])]
    return PackedDataset(dataset, plan_packs([2, 1, 3], 3))


def test_a_pack_is_its_dialogues_in_a_row(packed):
    assert len(packed) == 2 and packed.lengths.tolist() == [3, 3]
    first = packed[0]
    assert first["input_ids"].tolist() == [5, 6, 8] and first["lengths"].tolist() == [2, 1]
    assert first["labels"].tolist() == [-100, 6, -100] and first["index"] == [4, 7]
    assert packed.dataset[0]["labels"].tolist() == [5, 6], "the stored labels are left as they are"
    assert packed[1]["labels"].tolist() == [-100, 2, 3]


def test_rows(packed):
    batch = pack_collate([packed[0], example(0, 9)], pad_token_id=0)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 8], [9, 0, 0]],
        "labels": [[-100, 6, -100], [-100, -100, -100]],
        "position_ids": [[0, 1, 0], [0, 0, 1]],
        "seq_lengths": [[2, 1], [1, 0]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_flat(packed):
    batch = pack_collate([packed[0], packed[1], example(0, 9)], pad_token_id=0, flat=True)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 8, 1, 2, 3, 9]],
        "labels": [[-100, 6, -100, -100, 2, 3, -100]],
        "position_ids": [[0, 1, 0, 0, 1, 2, 0]],
        "seq_lengths": [[2, 1, 3, 1]],
    }


def test_global_batches_of_packs_do_not_depend_on_the_number_of_processes():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 137)
    dataset = [example(i, *range(1, n + 1)) for i, n in enumerate(lengths)]
    packed = PackedDataset(dataset, plan_packs(lengths, 64))

    def steps(world_size, accumulation):
        ranks = []
        for rank in range(world_size):
            batches = GlobalBatchSampler(
                len(packed),
                micro=2,
                accumulation=accumulation,
                world_size=world_size,
                rank=rank,
                seed=3,
                order="random",
            )
            batches.set_epoch(1)
            loader = WithDummy(packed, 0)
            ranks.append([pack_collate([loader[i] for i in micro], pad_token_id=0) for micro in batches])
            assert all(batch["seq_lengths"].sum() > 0 for batch in ranks[-1])
        assert len({len(batches) for batches in ranks}) == 1, "every rank has the same number of micro-batches"
        seen = []
        for start in range(0, len(ranks[0]), accumulation):
            batches = [batch for rank in ranks for batch in rank[start : start + accumulation]]
            seen.append(sorted(tuple(x) for b in batches for x in b["seq_lengths"].tolist() if any(b["labels"][0] > 0)))
        return [sorted(n for row in step for n in row if n) for step in seen]

    one = steps(1, 8)
    assert one == steps(2, 4) == steps(4, 2) == steps(8, 1)
    assert sorted(n for step in one for n in step) == sorted(lengths.tolist())
    assert DUMMY == -1


# --- packed equals unpacked, on real architectures

MODELS = {
    "llama": {},
    "gemma": {"tied": True},
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
}
CASES = [
    (arch, attention) for arch in MODELS for attention in ("eager", "sdpa") if (arch, attention) != ("gemma2", "sdpa")
]


@pytest.fixture(scope="module")
def load(tiny_model_dir):
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(arch, attention="sdpa", **changes):
        folder = tiny_model_dir(arch, **MODELS.get(arch, {}))
        config = AutoConfig.from_pretrained(folder)
        for name, value in changes.items():
            setattr(config, name, value)
        return AutoModelForCausalLM.from_pretrained(folder, config=config, attn_implementation=attention)

    return make


def dialogues(vocab_size, lengths=(20, 13, 30, 5, 1, 2, 17, 40), seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for i, length in enumerate(lengths):
        ids = rng.integers(0, vocab_size, length)
        labels = np.where(rng.random(length) < 0.5, ids, -100)
        labels[0] = ids[0]  # must not be learned from the dialogue before
        made.append(example(i, *ids.tolist(), labels=labels))
    return made


@pytest.mark.parametrize(("arch", "attention"), CASES)
@pytest.mark.parametrize("flat", [False, True])
def test_loss_and_gradients_equal_the_unpacked_ones(load, arch, attention, flat):
    model = load(arch, attention)
    examples = dialogues(model.config.vocab_size)
    report = compare_packing(model, examples, loss_sum, pad_token_id=3, capacity=48, flat=flat, batch_size=3)
    assert report.num_packs == 3 and report.exact, report.line
    assert report.loss_error < 1e-6 and report.gradient_error < 2e-6
    assert all(p.grad is None for p in model.parameters())
    assert check_no_leak(model, vocab_size=model.config.vocab_size, flat=flat) == 0.0


@pytest.mark.parametrize(("arch", "attention"), CASES)
def test_no_token_sees_another_dialogue(load, arch, attention):
    """Every dialogue in turn is replaced; the logits of all others, padding included, stay the same to the last bit."""
    model = load(arch, attention).eval()
    lengths = np.array([12, 20, 9, 15])

    def logits(rows):
        packs = [{"input_ids": np.concatenate(row), "labels": np.concatenate(row), "lengths": lengths} for row in rows]
        packs.append(example(0, 7, 8, 9))  # a short row, so that there is padding too
        batch = pack_collate(packs, pad_token_id=3)
        with torch.no_grad():
            return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits

    rng = np.random.default_rng(2)
    rows = [[rng.integers(0, model.config.vocab_size, n) for n in lengths] for _ in range(2)]
    before = logits(rows)
    for changed, (end, length) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
        other = [list(rows[0]), rows[1]]
        other[0][changed] = rng.integers(0, model.config.vocab_size, length)
        moved = (logits(other) - before).abs().amax(dim=-1)
        assert (moved[0, end - length : end] > 0).all()
        moved[0, end - length : end] = 0
        assert moved.max() == 0


def test_a_packed_dialogue_gets_the_logits_it_gets_alone(load):
    for arch in ("gemma2", "mistral"):  # windows of 8, dialogues of 20 and 30
        model = load(arch, "eager").eval()
        rng = np.random.default_rng(0)
        parts = [rng.integers(0, model.config.vocab_size, n) for n in (20, 30)]
        pack = {"input_ids": np.concatenate(parts), "labels": np.concatenate(parts), "lengths": [20, 30]}
        batch = pack_collate([pack], pad_token_id=0)
        with torch.no_grad():
            together = model(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
            ).logits.split([20, 30], dim=1)
            for part, packed in zip(parts, together, strict=True):
                alone = model(input_ids=torch.tensor(part)[None], use_cache=False).logits
                assert (alone - packed).abs().max() < 1e-5 * alone.abs().max()


def test_the_pad_token_changes_nothing(load):
    model = load("llama")
    examples = dialogues(model.config.vocab_size, (9, 3))
    batches = [pack_collate(examples, pad_token_id=pad) for pad in (0, 5, 200)]
    losses = {loss_sum(model, {k: v for k, v in batch.items() if k != "seq_lengths"}).item() for batch in batches}
    assert len(losses) == 1


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_other_rope_scalings_pack_exactly(load, kind):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    model = load("llama", rope_parameters=rope, max_position_embeddings=64)
    check_packable(model.config, 64)
    report = compare_packing(model, dialogues(model.config.vocab_size), loss_sum, pad_token_id=0, capacity=64)
    assert report.exact, report.line


# --- what cannot be packed is refused


def test_dynamic_rope_is_refused_and_rightly_so(load):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = load("llama", rope_parameters=rope, max_position_embeddings=16)
    with pytest.raises(SettingsError, match='RoPE scaling "dynamic".*--rope_scaling_type linear'):
        check_packable(model.config, 64)
    report = compare_packing(model, dialogues(model.config.vocab_size), loss_sum, pad_token_id=0, capacity=64)
    assert not report.exact


def test_rope_of_the_run_counts_not_that_of_the_base(load):
    config = load("llama").config
    check_packable(config, 64)
    with pytest.raises(SettingsError, match="dynamic"):
        check_packable(config, 64, {"rope_type": "dynamic", "factor": 2.0})


def test_models_that_are_not_packable():
    from transformers import AutoConfig

    with pytest.raises(SettingsError, match="linear_attention"):
        check_packable(AutoConfig.for_model("qwen3_next", num_hidden_layers=4), 64)
    with pytest.raises(SettingsError, match="bloom encodes positions with ALiBi"):
        check_packable(AutoConfig.for_model("bloom"), 64)
    longrope = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    config = AutoConfig.for_model("llama")
    check_packable(config, 64, longrope)
    with pytest.raises(SettingsError, match=r"longrope.*--model_max_length 64"):
        check_packable(config, 65, longrope)


@pytest.mark.parametrize("arch", ["opt", "mamba"])
def test_models_that_leak_are_noticed(tiny_model_dir, arch):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir(arch))
    with pytest.raises(SettingsError, match="lets a dialogue see the one packed before it"):
        check_no_leak(model, vocab_size=model.config.vocab_size)


def test_an_attention_mask_would_break_it(load):
    """Why pack_collate gives none: transformers then takes the row for one dialogue."""
    model = load("llama")

    def with_mask(model, batch):
        return loss_sum(model, {**batch, "attention_mask": torch.ones_like(batch["input_ids"])})

    report = compare_packing(model, dialogues(model.config.vocab_size), with_mask, pad_token_id=0, capacity=48)
    assert not report.exact and report.gradient_error > 1e-3


def test_dropout_is_off_while_comparing_and_on_again_afterwards(load):
    model = load("llama", attention_dropout=0.5).train()
    report = compare_packing(model, dialogues(model.config.vocab_size), loss_sum, pad_token_id=0, capacity=48)
    assert report.exact and model.training


def test_gradient_checkpointing_keeps_the_dialogues_apart(load):
    """The recomputed forward pass gets the positions too."""
    gradients = []
    for checkpointing in (False, True):
        model = load("gemma2", "eager").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        batch = pack_collate([one_pack(dialogues(model.config.vocab_size, (20, 13, 9)))], pad_token_id=0)
        del batch["seq_lengths"]
        loss_sum(model, batch).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 1e-6 * gradients[0].norm()


def test_an_adapter_and_many_packs_per_step(load):
    """What the Trainer adds up in a step of two processes with accumulation is what the dialogues alone give."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(load("qwen2"), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    examples = dialogues(model.config.vocab_size, tuple(np.random.default_rng(5).integers(2, 40, 30)))
    report = compare_packing(model, examples, loss_sum, pad_token_id=0, capacity=64, batch_size=2)
    assert report.num_packs > 8 and report.exact, report.line
    assert report.gradient_error < 2e-6
