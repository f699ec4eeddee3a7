"""What everything stands on: the user's error, exit codes, who speaks, the terminal, pages."""
