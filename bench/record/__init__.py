"""What was found: rows of results, where they come from, and tables of them."""
