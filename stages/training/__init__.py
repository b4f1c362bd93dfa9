"""The one trainer: Ray Train workers, the training loop, the DeepSpeed engine, checkpoints, the record."""
