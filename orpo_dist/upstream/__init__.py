"""The only room that reaches for private parts of other libraries; each of them in a register.

A module a library, light to import: a library is imported where it is used. Whatever a shim reaches
for stands above it, with the reason, the place upstream and what would make it superfluous.
``check`` says at start, in one sentence, which of these parts are not there any more.
"""

from orpo_dist.upstream.register import check

__all__ = ["check"]
