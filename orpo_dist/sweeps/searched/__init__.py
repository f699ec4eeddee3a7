"""What a sweep searches: its file, its space, what trials are compared by."""
