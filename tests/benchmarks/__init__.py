"""Measurements of speed, memory and quality. Each is a command: `python -m tests.benchmarks.NAME`."""
