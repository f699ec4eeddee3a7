"""Launching: a preset and a command become one ``accelerate launch``. Imports no torch.

Only ``launch.accelerate``, which runs as the launched process, loads more.
"""
