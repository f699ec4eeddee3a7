"""``python -m orpo_dist`` is ``orpo-dist``."""

import sys

from orpo_dist.cli import main
from orpo_dist.exits import recorded

sys.exit(recorded(main))
