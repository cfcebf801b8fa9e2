"""Chat fine-tuning of open language models, in the shape of FastChat.

The river: file row -> Dialogue -> Rendered -> Example -> batch -> loss -> adapter or model. One room per stretch of it:
`settings` (each setting once), `conversation` (templates), `data` (rows to labels), `model` (what calls
from_pretrained), `checkpoint` (trustworthy saving), `plan` (what fits), `train` (the recipe), `serve` (using the
result).
"""

__version__ = "1.0.0"

from fastchat import upstream_names

upstream_names.install()
