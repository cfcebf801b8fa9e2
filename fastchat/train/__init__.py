"""Room: training. One recipe, run by every process; arguments decide what it does.

train_lora.py, train.py   what people run: LoRA, and full fine-tuning
recipe.py                 the run, top to bottom
prepare.py                tokenizer and template; base model and adapter
datasets.py               the dialogues to train and to evaluate on, tokenised once per machine
packed.py                 --packing: which dialogues share a row, and whether this model keeps them apart
tree_support.py           which models can be trained on rows that are prefix trees
result.py                 all steps, and what follows the last: saved, verified, evaluated, recorded
planning.py, memory.py    what memory it will need, and what it needed
record.py                 what the run actually used, for training.json

arguments.py              the settings (../settings) as dataclasses on top of transformers' own
checks.py, hardware.py    what cannot work is refused; what the machine lacks falls back, with a message
deepspeed_config.py       a DeepSpeed configuration that cannot contradict the command line
engine/                   plain, DDP, ZeRO, FSDP: who holds weights and optimizer state, behind one interface
reporting.py              wandb and tensorboard, only where the user has set them up
settings.py               all of that put together: `parse`
imports.py                the slow imports, without garbage collection

trainer.py, loss.py       sum over supervised tokens / their global number, in training and evaluation
head.py, head_proof.py    the same loss without ever holding all logits; compared with them before the first step
auxiliary.py              what a model adds to the cross-entropy, and that nothing else is missing of its own loss
untrained.py              a warning for control tokens whose rows LoRA would leave untrained
sampling.py               the same global batches for any number of processes
callbacks.py              metrics.jsonl and samples.jsonl
nonfinite.py              a loss or gradient that is not finite never reaches the weights
startup.py, resuming.py   whose folder it is, where to resume from, what changed since
other_processes.py        resuming with another number of processes: global batch, counts, random numbers
checkpoint_plan.py        how large the checkpoints are, whether they fit on the disk
checkpointing.py          the Trainer's checkpoints through the checkpoint room; how a run stops in the middle
stopping.py               signals, a launcher or a process of the run that died
ending.py                 exit code and message of whatever ended a run
status.py                 how a process ends: status.json and log.txt (../processes.py: how several agree)
"""
