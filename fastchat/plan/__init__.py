"""What fits: the memory a training run needs, by arithmetic, before anything is loaded. Needs neither torch nor a GPU.

    python -m fastchat.plan --model_size 7b --q_lora True --gpu_memory 24GiB

`api.py` is what other rooms call. Every number has its source in a comment, and tests/plan compares it with what the
real model code does.
"""
