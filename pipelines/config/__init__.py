"""A run's configuration: loading, and the profiles."""
