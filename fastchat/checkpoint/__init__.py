"""Room: results on disk. Complete or absent, and compared with what was trained before they count.

    files.py     a staged folder whose files move into place together
    gather.py    the trained tensors from every engine; checking that they are finite, and files against them
    adapter.py   adapter_model.safetensors and adapter_config.json
    full.py      a whole model in sharded safetensors
    save.py      one result: weights, tokenizer, chat template, record
    record.py    training.json
    tuned.py     opening a result again, with its template, RoPE and quantisation
    merge.py     an adapter merged into its base
"""
