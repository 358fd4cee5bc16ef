"""The inference process: one GGUF model on llama.cpp, many requests in one batch."""
