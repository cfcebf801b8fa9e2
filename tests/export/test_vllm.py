"""The command for vLLM: an adapter on its base, or the merge that must come first."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastchat.export.vllm import commands


def test_an_adapter_is_served_on_its_base(adapter: Path, exportable: Path) -> None:
    (line,) = commands(str(adapter))
    words = shlex.split(line)
    assert words[:4] == ["vllm", "serve", str(exportable.resolve()), "--enable-lora"]
    assert words[words.index("--lora-modules") + 1] == f"mine={adapter.resolve()}"
    assert words[words.index("--max-lora-rank") + 1] == "8", "rank 4: the next larger one that vLLM accepts"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("use_dora", True, "DoRA"),
        ("modules_to_save", ["lm_head"], "lm_head"),
        ("trainable_token_indices", {"embed_tokens": [1]}, "rows of the embedding"),
        ("target_parameters", ["mlp.experts.down_proj"], "mlp.experts.down_proj"),
        ("bias", "all", "biases"),
        ("r", 1024, "rank 1024"),
    ],
)
def test_what_vllm_cannot_apply_is_merged_first(
    adapter: Path, tmp_path: Path, capsys: Any, key: str, value: Any, told: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, key: value}))
    lines = commands(str(copy))
    assert lines[0].startswith("fastchat merge") and lines[1].startswith("fastchat export vllm")
    assert told in capsys.readouterr().err
