"""What lies in a run folder, what it says, and who may write it."""
