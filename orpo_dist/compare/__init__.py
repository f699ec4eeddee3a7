"""People judge two models by eye: a blind page of answers side by side, and the tally of it."""
