"""Evidence: models over a test set, their errors with intervals, and a page to look at them."""
