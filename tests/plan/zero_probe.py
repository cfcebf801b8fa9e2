"""Started by test_zero.py in two processes: what a real DeepSpeed engine keeps, by kind, as JSON on rank 0.

deepspeed --num_gpus 2 tests/plan/zero_probe.py CONFIG.json full|lora HIDDEN
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any


def build(how: str, hidden: int) -> Any:
    """A Llama of 4 layers; with "lora" a frozen one below an adapter of rank 8."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 4, "vocab_size": 1000}
    config = AutoConfig.for_model("llama", **sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=hidden // 4)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if how == "lora":
        from peft import LoraConfig, get_peft_model

        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(model, LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM"))
    return model


def nbytes(tensors: Any) -> int:
    """Bytes of the distinct storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def main() -> None:
    import deepspeed
    import torch

    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    path, how, hidden = words[0], words[1], int(words[2])
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    deepspeed.init_distributed(dist_backend="gloo")
    model = build(how, hidden)
    trained = [p for p in model.parameters() if p.requires_grad]
    number = sum(p.numel() for p in trained)
    optimizer = torch.optim.AdamW(trained)
    engine, zero, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    ids = torch.randint(0, 1000, (1, 16))
    steps = config["gradient_accumulation_steps"]
    for i in range(2 * steps):
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        if i == 2 * steps - 1:
            break
        engine.step()
    gc.collect()
    inner = zero.optimizer
    stage = engine.zero_optimization_stage()
    states = [t for state in inner.state.values() for t in state.values() if torch.is_tensor(t) and t.dim()]
    masters = zero.single_partition_of_fp32_groups if stage < 3 else zero.fp32_partitioned_groups_flat
    kept = [p.ds_tensor for p in model.parameters()] if stage == 3 else list(model.parameters())
    if stage == 3:
        gradients = [zero.grad_partitions_flat_buffer]
    else:
        gradients = [g for group in zero.averaged_gradients.values() if group is not None for g in group]
    found = {
        "weights": nbytes(kept),
        "optimizer": nbytes([*states, *masters]),
        "gradients": nbytes(gradients),
        "trained": number,
    }
    if engine.global_rank == 0:
        print("PROBE " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
