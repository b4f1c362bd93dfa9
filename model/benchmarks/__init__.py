"""Measurements of speed and memory. Each module is a command of its own."""
