"""Which pairs make a step, on which rank, in which micro-batch."""
