"""``orpo-dist`` and ``python -m orpo_dist`` are this one function."""

from orpo_dist.base.exits import leave, recorded
from orpo_dist.engines.lifeline import hold_on_to_launcher


def main() -> None:
    """Run the command line and end this process with its code."""
    hold_on_to_launcher()  # before anything that takes long
    leave(recorded(_command))


def _command() -> int:
    from orpo_dist.cli import main  # a signal may come while this is imported

    return main()


if __name__ == "__main__":
    main()
