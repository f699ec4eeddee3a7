"""Pairs become one packed or padded batch, log-probs, the loss and its sums."""
