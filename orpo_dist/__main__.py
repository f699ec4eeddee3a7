"""``python -m orpo_dist`` is ``orpo-dist``."""

from orpo_dist.cli import main
from orpo_dist.exits import leave, recorded
from orpo_dist.lifeline import hold_on_to_launcher

hold_on_to_launcher()  # before anything that takes long
leave(recorded(main))
