"""Concepts learned from a few pictures, and the contextualizer that regularizes them."""
