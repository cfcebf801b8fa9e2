"""Results on disk: complete or absent, and compared with the trained weights before they are used.

folders.py   a staged folder whose files move into place together; a new folder that appears complete
gather.py    collecting the trained tensors under every engine; checking that they are finite and match the files
adapter.py   adapter_model.safetensors and adapter_config.json
full.py      a whole model in sharded safetensors
save.py      one result: weights, tokenizer, chat template, record
record.py    training.json
digests.py   of a result: recorded when it is saved, checked before it is opened
trained_model.py  opening a result, with its template, RoPE and quantisation
merge.py     merging an adapter into its base
prepare.py, vocabulary.py  adding special tokens to a model

manager.py   saves checkpoint-N with all processes: staged, flushed, described, renamed, rotated
staging.py   those steps one by one; cleaning up after a process that died in between
manifest.py  MANIFEST.json: every file's size and sha256, and which run and step it belongs to
discover.py  the newest valid checkpoint; names the others with their problems
verify.py    the same as a command
resume_state.py, load.py  optimizer, schedule and random state; weights: no pickle is ever executed
fingerprint.py, space.py  the fingerprint of a base model; disk space
"""
