"""Room: from a conversation file to the numbers a model is trained on.

A row is read strictly, becomes a Dialogue, is rendered and tokenised into ids and labels (the mask comes from the
renderer's spans), and is kept in flat arrays until batches are made. Standard library, numpy and tokenizers only: torch
is imported inside the one function that makes tensors.

    reading.py        bytes -> rows, each with its line      strict_json.py   one JSON object, nothing tolerated
    formats.py        row -> Dialogue                        bad_rows.py      what is wrong with a row, told once
    loading.py        files -> records, and the counts of everything dropped or changed
    raw_tokenizer.py  a tokenizer read without torch         encoder.py       text apart from control tokens
    binding.py        rendered text -> ids and mask          tokenization.py  dialogue -> ids and labels, cut where needed
    probes.py         harmless dialogues for proofs         saved_template.py  the Jinja text saved with a result
    store.py          all examples in flat arrays            dataset.py       what the Trainer indexes
    counts.py         what became of every row and token     progress.py      the progress bar
    collate.py        examples -> a padded batch
    preview.py        python -m fastchat.data.preview: see what is trained before anything is; terminal.py paints it
"""
