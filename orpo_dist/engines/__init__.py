"""Which processes there are, on which engine, and how they act as one."""
