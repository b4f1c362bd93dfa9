"""One module (or package) a stage: a stage reads datasets and writes datasets, on Ray. No stage imports another."""
