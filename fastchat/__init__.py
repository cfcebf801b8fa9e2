"""Chat fine-tuning of open language models, in the shape of FastChat.

The data flow: row -> Dialogue -> Rendered -> Example -> batch -> loss -> adapter or model. One package per step:
`settings` (all settings), `conversation` (templates), `data` (rows to labels), `model` (loading models), `checkpoint`
(safe saving), `plan` (memory), `train` (training), `serve` (using the result).
"""

__version__ = "1.0.0"

from fastchat import upstream_names

upstream_names.install()
