"""Room: from a conversation file to the numbers a model is trained on.

    rows/      what --data_path names -> files -> rows, read strictly -> Dialogue
    encoding/  Dialogue -> rendered text -> ids and labels (the mask comes from the renderer's spans), and the proofs
    tokens/    the store on disk, the cache that keeps it, the processes that fill it, the datasets
    batches/   packing, prefix trees and collators
    view/      the preview in the terminal and as a page
    tools/     what the data commands share; the commands are the modules next to this file, run by
               `python -m fastchat.data.NAME`

Standard library, numpy and tokenizers only: torch is imported inside the functions that make tensors, pyarrow and the
hub's libraries only where they are used.
"""
