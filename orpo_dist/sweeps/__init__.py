"""Sweeps: many runs side by side, each of them a run of several processes, on Ray."""
