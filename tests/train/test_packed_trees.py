"""--packing with rows that are prefix trees: losses, gradients, counts and resuming as with separate rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat.data.batches import tree_mask
from tests import builders
from tests.data.test_reasoning import APART
from tests.train.conftest import Outcome
from tests.train.flags import Train, covers, ok
from tests.train.test_packed import STEP, distance, gradient
from tests.train.test_resume import interrupted, same_run  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow

SYSTEM = "You are a careful helper. You answer in few words, and you never guess. " * 2


def reasoning_rows(num: int, turns: int) -> list[dict[str, Any]]:
    """Dialogues whose every answer was thought about; the template drops those thoughts from the history."""
    rows = []
    for i in range(num):
        messages: list[dict[str, str]] = [{"role": "system", "content": SYSTEM}]
        for j in range(turns):
            question = f"In dialogue {i}, which number comes after {i + j}, and which one is there before it?"
            answer = {"content": f"After it {i + j + 1}.", "reasoning_content": f"Add {j}."}
            messages += [{"role": "user", "content": question}, {"role": "assistant", **answer}]
        rows.append({"messages": messages})
    return rows


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Six dialogues of eight answers, 48 examples, for a Llama whose template drops the thoughts."""
    folder = tmp_path_factory.mktemp("trees")
    template = APART.replace("KEY", "reasoning_content")
    model = builders.make_model(
        folder / "model", tokenizer_kind="byte_nobos", chat_template=template, max_positions=2048
    )
    data = builders.write_rows(folder / "rows.json", reasoning_rows(6, 8))
    flags = ["--model_name_or_path", str(model), "--data_path", str(data), "--conv_template", "tokenizer"]
    return [*flags, "--model_max_length", "1024", "--packing", "True", "--disable_tqdm", "True", "--max_steps", "1"]


@covers("packing_prefix_tree")
def test_a_step_is_that_of_separate_rows_with_a_third_of_the_tokens(train: Train, flags: list[str]) -> None:
    base = Path(flags[1])
    step = [*STEP[2:-2], "--conv_template", "tokenizer", "--lr_scheduler_type", "constant"]
    step += ["--per_device_train_batch_size", "64", "--verify_packing", "True"]
    tree = ok(train(*step, base=flags, full=True, name="tree"))
    rows = ok(train(*step, "--packing_prefix_tree", "False", base=flags, full=True, name="rows"))
    assert tree.losses == pytest.approx(rows.losses, rel=1e-6)
    assert distance(gradient(rows, base), gradient(tree, base)) < 1e-5
    (computed, learned), (separate, same) = (
        (one.metrics[0]["num_tokens"], one.metrics[0]["num_supervised_tokens"]) for one in (tree, rows)
    )
    assert learned == same and separate > 3 * computed
    found = tree.record["packing"]["train"]
    assert (found["tokens"], found["tokens_without_sharing"]) == (computed, separate)
    assert f"common prefixes computed once: {computed:,} tokens instead of {separate:,}" in tree.err
    tails = "48 not computed (after an example's last learned token)"  # a line break after each answer
    assert f"%), {tails}; common prefixes computed once: {computed:,} tokens" in tree.err
    assert f"%), {tails}\n" in rows.err and rows.record["data"]["train"]["counts"]["tokens"] == separate + 48
    assert "packing verified on 16 examples in" in tree.err and "common prefixes" not in rows.err


def test_the_kernel_that_will_be_used_decides(train: Train, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that the model is loaded with, which the other is only compared with."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    monkeypatch.setitem(AttentionInterface._global_mapping, "of_tests", sdpa_attention_forward)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "of_tests", sdpa_mask)
    outcome = ok(train("--attn_implementation", "of_tests", base=flags))
    assert outcome.record["attention"] == "of_tests" and outcome.record["speed"] == {"attn_implementation": "on"}
    assert outcome.err.count("because of_tests cannot leave out what is on another branch") == 1


def test_a_broken_mask_ends_the_run_before_its_first_step(
    train: Train, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noticed without being asked for; and where it only shows on the data, by --verify_packing."""
    right = tree_mask._of_tree

    def broken(make: Any, ends: torch.Tensor, positions: torch.Tensor) -> Any:
        """Dialogues see those before them in the row, from their 100th token on."""
        return right(make, torch.where(positions < 100, ends, ends.shape[1]), positions)

    monkeypatch.setattr(tree_mask, "_of_tree", broken)
    found = train("--verify_packing", "True", base=flags)
    assert found.code == 2 and "--verify_packing: loss off by" in found.err
    assert not (found.folder / "metrics.jsonl").exists()
    monkeypatch.setattr(tree_mask, "_of_tree", lambda make, ends, positions: right(make, ends * 0 + 99, positions))
    found = train(base=flags)
    assert found.code == 2 and "Use --packing_prefix_tree False" in found.err


@pytest.mark.thorough
def test_some_steps_and_evaluations_are_those_of_separate_rows(train: Train, flags: list[str]) -> None:
    """All examples in every step, so that it does not matter which share a row."""
    more = ["--max_steps", "4", "--per_device_train_batch_size", "64", "--learning_rate", "1e-2", "--lora_dropout", "0"]
    more += ["--eval_data_path", flags[3], "--eval_strategy", "steps", "--eval_steps", "2"]
    tree = ok(train(*more, base=flags, name="tree"))
    rows = ok(train(*more, "--packing_prefix_tree", "False", base=flags, name="rows"))
    apart = ok(train(*more, "--packing", "False", base=flags, name="apart"))
    for one, other in zip(tree.metrics, rows.metrics, strict=True):
        for name in ("loss", "grad_norm", "eval_loss", "num_supervised_tokens", "eval_num_supervised_tokens"):
            assert one.get(name) == pytest.approx(other.get(name), rel=1e-4), name
    assert tree.losses == pytest.approx(apart.losses, rel=1e-4)
    assert rows.metrics[0]["num_tokens"] == apart.metrics[0]["num_tokens"] > 3 * tree.metrics[0]["num_tokens"]


@pytest.mark.thorough
def test_resuming_is_bit_identical_and_only_with_the_same_trees(
    train: Train,
    interrupted: Callable[..., Outcome],  # noqa: F811
    flags: list[str],
) -> None:
    more = ["--max_steps", "-1", "--num_train_epochs", "3", "--per_device_train_batch_size", "1", "--log_samples"]
    more += ["--lora_dropout", "0.1", "--learning_rate", "1e-3", "--save_strategy", "steps", "--save_steps", "2"]
    more += ["--model_max_length", "600"]
    plain = train(*more, base=flags, name="plain")
    interrupted(5, *more, base=flags, name="broken")
    refused = train(*more, "--packing_prefix_tree", "False", base=flags, name="broken")
    assert refused.code == 2 and "which examples share a pack" in refused.err
    resumed = train(*more, base=flags, name="broken")
    assert "checkpoint-4: step 4" in resumed.err
    same_run(plain, resumed)
    assert plain.record["packing"]["train"]["packs"] * 3 == len(plain.losses)


@pytest.mark.thorough
def test_separate_rows_where_the_kernel_has_no_mask_and_it_is_said(
    train: Train, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastchat.train import packed

    plain = ok(train("--packing_prefix_tree", "False", base=flags, name="plain"))
    why = packed.why_no_tree
    monkeypatch.setattr(packed, "why_no_tree", lambda config, attention: why(config, "flash_attention_2"))
    rows = ok(train(base=flags))
    assert rows.metrics == plain.metrics
    said = "train packing: common prefixes are computed in every row, because flash_attention_2 cannot leave out what"
    assert rows.err.count(said) == 1 and said not in plain.err
