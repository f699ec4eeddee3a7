"""A sweep runs: the cluster, trials, their workers, and the driver over them."""
