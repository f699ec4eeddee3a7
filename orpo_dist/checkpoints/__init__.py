"""A run's state, written whole or not at all, and read again by any engine at any size."""
