"""Training problems: what is learned from which examples by which loss, without Ray or DeepSpeed."""
