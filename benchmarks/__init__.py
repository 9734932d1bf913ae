"""What this project measures: each figure of the documents comes from one of these."""
