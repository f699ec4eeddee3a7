"""Print the register, or put it into a page: ``python -m orpo_dist.upstream docs/upstream.md``."""

import sys
from pathlib import Path

from orpo_dist.upstream.register import table

MARK = "<!-- register: generated -->\n"

if __name__ == "__main__":
    if len(sys.argv) == 1:
        print("\n".join(table()))
    else:
        page = Path(sys.argv[1])
        before = page.read_text("utf-8").partition(MARK)[0]
        page.write_text(before + MARK + "\n" + "\n".join(table()) + "\n", encoding="utf-8")
