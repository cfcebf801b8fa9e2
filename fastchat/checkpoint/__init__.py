"""Room: results on disk. Complete or absent, and compared with what was trained before they count.

folders.py   a staged folder whose files move into place together; a new folder that appears whole
gather.py    the trained tensors from every engine; checking that they are finite, and files against them
adapter.py   adapter_model.safetensors and adapter_config.json
full.py      a whole model in sharded safetensors
save.py      one result: weights, tokenizer, chat template, record
record.py    training.json
digests.py   of a result: recorded when it is saved, checked before it is opened
tuned.py     opening a result again, with its template, RoPE and quantisation
merge.py     an adapter merged into its base

manager.py   saves checkpoint-N with all processes: staged, flushed, described, renamed, rotated
staging.py   those steps one by one; what a process that died in the middle left is cleaned up
manifest.py  MANIFEST.json: every file's size and sha256, and what run and moment it belongs to
discover.py  the newest valid checkpoint; the others named with what is wrong
verify.py    the same as a command
resume_state.py, load.py  optimizer, schedule, random numbers; weights: no pickle is ever executed
fingerprint.py, space.py  of a base; on a disk
"""
