"""How wrong a transcript is, and how sure that is."""
