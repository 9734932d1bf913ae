"""From CSV files to batches."""
