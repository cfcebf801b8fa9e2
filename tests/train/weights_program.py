"""`fastchat.train.train`, which also leaves the engine's weights next to the result: a program for `warm.run`.

OUT.weights.pt then holds what the engine had after the last step, gathered by DeepSpeed before anything is saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def install() -> None:
    """Has the weights written when the recipe begins to save its result."""
    from fastchat.train import result

    real = result.measured

    def measured(trainer: Any, metrics: Any) -> Any:
        import deepspeed

        weights = {}
        trainer.model_wrapped.optimizer.checkpoint_event_prologue()  # nothing on its way between processes
        for name, parameter in trainer.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=None):
                weights[name] = parameter.detach().clone()
        trainer.model_wrapped.optimizer.checkpoint_event_epilogue()
        if trainer.args.process_index == 0:
            torch.save(weights, str(Path(trainer.args.output_dir)) + ".weights.pt")
        return real(trainer, metrics)

    result.measured = measured


def main(words: list[str]) -> None:
    """One process of the run with the command line `words`."""
    from fastchat.train import train

    install()
    train.main(words)
