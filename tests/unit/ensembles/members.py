"""Data and prompts for the tests of ensembles."""

from tests.conftest import DEMO

EVAL = str(DEMO / "eval.jsonl")
PROMPTS = ["How do I boil an egg?", "Hi", "Why is the sky blue in the morning and red at night?"]
