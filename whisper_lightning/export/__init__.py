"""A trained model in the formats of other programs, each checked by the program that reads it."""
