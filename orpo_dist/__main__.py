"""``python -m orpo_dist`` is ``orpo-dist``."""

import sys

from orpo_dist.cli import main

sys.exit(main())
