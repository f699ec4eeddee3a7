"""What is wrong with preference data, before they cost a run: rules, figures, a cleaned file."""

from orpo_dist.audit.audit import Audit, audit
from orpo_dist.audit.rules import RULES

__all__ = ["RULES", "Audit", "audit"]
