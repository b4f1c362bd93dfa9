"""Stage `register`: the adapter becomes a version in MLflow's model registry."""
