"""Room: from a conversation file to the numbers a model is trained on.

A row is read strictly, becomes a Dialogue, is rendered and tokenised into ids and labels (the mask comes from the
renderer's spans), and is kept in flat arrays until batches are made. Standard library, numpy and tokenizers only: torch
is imported inside the one function that makes tensors.

    reading.py       bytes -> rows, each with its line       strict_json.py   one JSON object, nothing tolerated
    formats.py       row -> Dialogue                         bad_rows.py      what is wrong with a row, told once
    loading.py       files -> records, and the counts of everything dropped or changed
    encoder.py       text -> ids without control tokens      tokenization.py  Dialogue -> ids and labels
    store.py         all examples in flat arrays             dataset.py       what the Trainer indexes
    collate.py       examples -> a padded batch              counts.py        the counts as a table for the log
    preview.py       python -m fastchat.data.preview: see what is trained before anything is
"""
