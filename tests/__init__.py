"""The test suite, its helpers (`support/`) and the benchmarks (`benchmarks/`)."""
