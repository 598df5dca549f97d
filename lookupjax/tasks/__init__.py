"""What is learned: a loss for training and per-example figures for evaluation."""
