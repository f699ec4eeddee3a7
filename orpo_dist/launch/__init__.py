"""From one command to many processes on many machines; nothing here imports torch at the top."""
