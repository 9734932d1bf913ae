"""What keeps the project: its shipped clips, a corpus of any size, hard tests of long duration."""
