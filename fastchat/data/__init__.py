"""Room: from a conversation file to the numbers a model is trained on.

A row is read strictly, becomes a Dialogue, is rendered and tokenised into ids and labels (the mask comes from the
renderer's spans), and is kept in flat arrays on disk until batches are made. Standard library, numpy, tokenizers only:
torch is imported inside the one function that makes tensors, pyarrow and the hub's libraries where they are asked.

    sources.py        what --data_path names -> files; hub.py asks the hub
    reading.py        bytes -> rows, each with its line; tables.py of parquet.py and arrow.py; row_size.py
    strict_json.py    one JSON object, nothing tolerated
    bad_rows.py       what is wrong with a row, told once
    formats.py        row -> Dialogue
    loading.py        files -> records, and the counts of everything dropped or changed
    raw_tokenizer.py  a tokenizer directory read without torch
    encoder.py        plain text on one side, control tokens on the other
    binding.py        rendered text -> ids and mask; probes.py holds what proves them
    tokenization.py   dialogue -> ids and labels, cut where needed; beginning.py encodes no more than can be kept
    saved_template.py the Jinja text saved beside a result
    store.py          all examples in flat arrays
    tokenising.py     files -> a store on disk, made once: workers.py in several processes, token_cache.py keeps it,
                      code_digest.py knows the code, fingerprint.py the data, mixing.py chooses of it
    dataset.py        what the Trainer indexes
    collate.py        examples -> a padded batch
    counts.py         what became of every row and token; progress.py shows it being made
    preview.py        python -m fastchat.data.preview: what would be trained; terminal.py paints it
    html_report.py    its page: reasons.py says why a token is (not) learned, token_text.py and histogram.py help,
                      report/ holds style and scripts
    tools.py          what upstream's data tools share: split_long_conversation, split_train_test, merge, get_stats,
                      convert_alpaca, filter_wrong_format, clean_sharegpt (with html_markdown.py)
    command.py        the command line of all these; choosing.py finds tokenizer and template, writing.py writes files
"""
