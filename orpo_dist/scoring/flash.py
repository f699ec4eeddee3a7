"""Which flash attention stands behind torch's kernels: a newer one where it is installed and right.

torch (from 2.11) can put FlashAttention 3 or 4 in the place of its own, for the whole process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch.nn import attention

from orpo_dist.base.reasons import reason_of

logger = logging.getLogger("orpo_dist")

NEWEST = ("FA4", "FA3")  # tried in this order; each brings its own package
ACTIVATES = hasattr(attention, "activate_flash_attention_impl")


def use_newest(differs: Callable[[], str | None]) -> str | None:
    """Activate the newest that is right on this device; its name, None for torch's own.

    differs: what is wrong with the attention that is active, None if nothing is. One that the user
    has activated stays.
    """
    if not ACTIVATES:
        return None
    if (chosen := attention.current_flash_attention_impl()) is not None:
        return chosen
    for name in NEWEST:
        if not use(name):
            continue
        if (reason := differs()) is None:
            logger.info("attention: packed, in one kernel of %s", name)
            return name
        attention.restore_flash_attention_impl()
        logger.warning(
            "attention: not in a kernel of %s, which is installed, as it %s", name, reason
        )
    return None


def use(name: str) -> bool:
    """Activate one; whether that is so."""
    if not ACTIVATES or name not in attention.list_flash_attention_impls():
        return False
    if attention.current_flash_attention_impl() == name:
        return True
    try:
        attention.activate_flash_attention_impl(name)
    except ImportError:  # its package is not installed
        return False
    except Exception as error:  # or is another one than torch knows
        logger.warning(
            "attention: not in a kernel of %s, which does not start (%s)", name, reason_of(error)
        )
        return False
    return attention.current_flash_attention_impl() == name
