"""GPT-like decoders: GPT-2 and GPT-3, and Llama-like ones by configuration."""
