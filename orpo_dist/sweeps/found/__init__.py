"""What a sweep has found: points, intervals, advice, the page, the next and finer space."""
