"""Upstream's constants, kept for programs that read them; this package does not depend on them."""

from __future__ import annotations

import os
from enum import IntEnum

from fastchat.upstream_names import refuse

REPO_PATH = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOGDIR = os.getenv("LOGDIR", ".")  # the log folder of `utils.build_logger`; "" disables the log file
CPU_ISA = os.getenv("CPU_ISA")

INPUT_CHAR_LEN_LIMIT = int(os.getenv("FASTCHAT_INPUT_CHAR_LEN_LIMIT", 12000))
CONVERSATION_TURN_LIMIT = 50
SESSION_EXPIRATION_TIME = 3600  # seconds, as all times below
CONTROLLER_HEART_BEAT_EXPIRATION = int(os.getenv("FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION", 90))
WORKER_HEART_BEAT_INTERVAL = int(os.getenv("FASTCHAT_WORKER_HEART_BEAT_INTERVAL", 45))
WORKER_API_TIMEOUT = int(os.getenv("FASTCHAT_WORKER_API_TIMEOUT", 100))
WORKER_API_EMBEDDING_BATCH_SIZE = int(os.getenv("FASTCHAT_WORKER_API_EMBEDDING_BATCH_SIZE", 4))


class ErrorCode(IntEnum):
    """The error codes of upstream's servers."""

    VALIDATION_TYPE_ERROR = 40001
    INVALID_AUTH_KEY = 40101
    INCORRECT_AUTH_KEY = 40102
    NO_PERMISSION = 40103
    INVALID_MODEL = 40301
    PARAM_OUT_OF_RANGE = 40302
    CONTEXT_OVERFLOW = 40303
    RATE_LIMIT = 42901
    QUOTA_EXCEEDED = 42902
    ENGINE_OVERLOADED = 42903
    INTERNAL_ERROR = 50001
    CUDA_OUT_OF_MEMORY = 50002
    GRADIO_REQUEST_ERROR = 50003
    GRADIO_STREAM_UNKNOWN_ERROR = 50004
    CONTROLLER_NO_WORKER = 50005
    CONTROLLER_WORKER_TIMEOUT = 50006


__getattr__ = refuse(__name__)
