"""The rules of the audit, once: what each says, how bad it is, what to do, where it begins."""

from __future__ import annotations

from dataclasses import dataclass, field

from orpo_dist.data.reasons import REASONS

SEVERITIES = ("error", "warning", "note")

NEAR = 0.8  # Jaccard similarity of word triples from which two texts are near-duplicates
NEAR_IDENTICAL = 0.9  # the same, of the two answers of one pair
MANY_UNUSABLE = 0.05  # from this share of the rows on, unusable rows are an error
BIASED = 0.6  # "the longer answer wins" is a warning where it surely beats this accuracy
MANY_CUT = 0.25  # from this share of the pairs on, cutting is a warning
FEW_LETTERS = 20  # texts with fewer letters have no script of their own


@dataclass(frozen=True)
class Rule:
    """what: a sentence about {n} rows or pairs; advice: what to do; fires: the threshold in words.

    drop: whether ``--clean`` leaves these rows out unless told otherwise.
    """

    severity: str
    what: str
    advice: str
    fires: str
    drop: bool = False


UNUSABLE_ADVICE = "training skips these rows; correct them at their source if there are many"

RULES = {
    "contradictory": Rule(
        "error",
        "{n} pairs contradict another one: the same prompt and answers, preferred the other way",
        "find out which label is right; --clean drops both sides",
        f"A > B and B > A for one prompt, each text equal or at least {NEAR} similar",
        drop=True,
    ),
    "leaked": Rule(
        "error",
        "{n} pairs have a prompt that the evaluation data hold too",
        "drop them from training, or evaluation measures memory; --clean does",
        "the prompt equals one of the evaluation data, white space apart",
        drop=True,
    ),
    "leaked_near": Rule(
        "warning",
        "{n} pairs have a prompt that is nearly one of the evaluation data",
        "look at a few; --clean drops them from training",
        f"the prompt is at least {NEAR} similar to one of the evaluation data",
        drop=True,
    ),
    "beyond_embedding": Rule(
        "error",
        "{n} pairs hold a token that the model has no embedding for",
        "use the tokenizer that belongs to the model, or give the model more rows with "
        "resize_token_embeddings; training refuses these data",
        "a token id of prompt or answers, the end token included, is not below the vocab_size in "
        "the model's config.json",
    ),
    "double_bos": Rule(
        "error",
        "{n} prompts begin with a BOS token that the tokenizer or template adds again",
        "remove it from the text or from the template",
        "the prompt's text begins with a BOS marker, or its token ids with BOS twice",
    ),
    "duplicate": Rule(
        "warning",
        "{n} pairs repeat an earlier one",
        "drop them, or they weigh double; --clean keeps the first",
        "prompt, chosen and rejected equal those of an earlier pair, white space apart",
        drop=True,
    ),
    "near_duplicate": Rule(
        "warning",
        "{n} pairs nearly repeat an earlier one",
        "look at a few; --clean keeps the first",
        f"prompt, chosen and rejected are each at least {NEAR} similar to an earlier pair's",
        drop=True,
    ),
    "near_identical": Rule(
        "warning",
        "{n} pairs have two nearly equal answers",
        "check that the small difference is what the model shall learn; if not, --drop them",
        "the answers differ only in case and white space, or are at least "
        f"{NEAR_IDENTICAL} similar",
    ),
    "lower_score": Rule(
        "warning",
        "{n} pairs have a chosen answer with the lower score",
        "find out which answer is the better one; if the scores are right, --drop these pairs",
        "of two score or rating columns (`score_chosen` and `score_rejected` …), the one of chosen "
        "is the lower",
    ),
    "length_bias": Rule(
        "warning",
        "the {longer} answer wins in {n} pairs, so length alone predicts the label",
        "the model will learn to write {longer} answers: balance the data, or judge with length "
        "held equal",
        f"the 95 % Wilson interval of 'the longer answer wins' lies above {BIASED} or below "
        f"{1 - BIASED:g}",
    ),
    "role_trouble": Rule(
        "warning",
        "{n} prompts have an odd order of roles",
        "check how the conversations were cut; many templates refuse them",
        "the prompt ends with the assistant, a system message is not the first, or user or "
        "assistant speaks twice in a row",
    ),
    "markers": Rule(
        "warning",
        "{n} pairs hold special tokens or template marks inside their text",
        "split transcripts into messages, and take marks of other templates out of the text",
        "a known mark such as `[INST]`, `</s>` or those of ChatML, `Human:` at the start of a "
        "paragraph, or a special token of the tokenizer, in any text (at the very end of an "
        "answer it is double_eos)",
    ),
    "over_long": Rule(
        "warning",
        "{n} pairs are cut by the length limits",
        "see the truncation table for what other limits would cost",
        f"longer than the limits of this configuration; a note below {MANY_CUT:.0%} of the pairs",
    ),
    "lost_difference": Rule(
        "warning",
        "{n} pairs have answers that differ only beyond the length limit",
        "raise --max-completion-length or --max-seq-length; training skips these pairs",
        "after cutting, both answers are the same tokens",
    ),
    "double_eos": Rule(
        "note",
        "{n} pairs have an answer that ends with an end token in its text",
        "nothing to do here: the loader ends every answer once; other trainers may end it twice",
        "the text of an answer ends with an end mark",
    ),
    "script_switch": Rule(
        "note",
        "{n} chosen answers are in another script than their prompt",
        "fine for translations; otherwise the model learns to change language",
        "prompt and chosen answer each have most of their letters in one script, not the same, "
        f"and at least {FEW_LETTERS} letters",
    ),
}
RULES.update(
    {
        reason: Rule("warning", "{n} rows cannot be used: " + meaning, UNUSABLE_ADVICE,
                     f"{meaning}; an error from {MANY_UNUSABLE:.0%} of the rows on", drop=True)
        for reason, meaning in REASONS.items()
    }
)  # fmt: skip
DROPPED = tuple(name for name, rule in RULES.items() if rule.drop)


@dataclass
class Finding:
    """One rule that fired. rows: row number of the corpus -> what is said of that row."""

    rule: str
    severity: str
    n: int
    of: int
    rows: dict[int, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        share = self.n / self.of
        shown = f"{self.n} of {self.of} ({'<0.1%' if share < 0.001 else format(share, '.1%')})"
        return RULES[self.rule].what.format(n=shown, **self.words)

    @property
    def advice(self) -> str:
        return RULES[self.rule].advice.format(**self.words)


def in_order(findings: list[Finding]) -> list[Finding]:
    """Worst first; within a severity, the most frequent first."""
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), -f.n, f.rule))
