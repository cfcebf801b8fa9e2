"""Results for other programs: GGUF files for llama.cpp and Ollama, vLLM, the Hugging Face hub."""
