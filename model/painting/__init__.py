"""Encoded requests, as the server and the registered model get them: validated, then painted in batches."""
