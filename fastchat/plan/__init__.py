"""The planner: computes the memory of a training run before anything is loaded. Needs neither torch nor a GPU.

    python -m fastchat.plan --model_size 7b --q_lora True --gpu_memory 24GiB

`api.py` is the interface for other packages. Every number has its source in a comment, and tests/plan compares the
results with the real model code.
"""
