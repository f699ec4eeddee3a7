"""Answers of models: prompts from anywhere, sampling, a fine-tune beside its base, a chat."""
