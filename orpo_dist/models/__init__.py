"""Weights, tokenizer and adapters, ready to train or to answer."""
