"""Torch-only components: everything that works without Ray, MLflow or the pipeline."""
