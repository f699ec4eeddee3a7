"""``make gpu``: what can only be known on a GPU, in one table, under ten minutes."""
