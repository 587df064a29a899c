"""Models that run in this process: device thread, batches, tokenizer, model files."""
