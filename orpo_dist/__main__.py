"""``python -m orpo_dist`` is ``orpo-dist``."""

from orpo_dist.cli import main
from orpo_dist.exits import leave, recorded

leave(recorded(main))
