"""What is wrong with preference data, before they cost a run: rules, figures, a cleaned file."""
