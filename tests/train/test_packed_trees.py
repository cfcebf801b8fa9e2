"""--packing with rows that are prefix trees: losses, gradients, counts and resuming as with separate rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.data.test_reasoning import APART
from tests.tiers import thorough
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
    assert "packing verified on 16 examples in" in tree.err
