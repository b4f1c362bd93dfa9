"""Stage `curriculum`: the training plan."""
