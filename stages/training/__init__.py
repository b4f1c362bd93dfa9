"""The trainer of every stage: Ray Train workers, the training loop, the DeepSpeed engine, checkpoints, metrics."""
