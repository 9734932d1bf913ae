"""What happens beside the training step: scoring, checkpoints, speed."""
