"""Stage `train_adapter`: the adapter's training on the plan."""
