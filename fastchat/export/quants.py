"""The types of weights that `fastchat export gguf` writes."""

from __future__ import annotations

CONVERTED = ("f32", "f16", "bf16", "q8_0")  # by the converter itself
QUANTIZED = (  # by llama-quantize, from one of the others
    *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_0", "q4_k_s", "q4_k_m"),
    *("q5_0", "q5_k_s", "q5_k_m", "q6_k"),
)
BEFORE = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}  # dtype of the weights -> what is quantised
