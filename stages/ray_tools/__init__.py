"""Ray for all stages: the cluster, functions over many items, numbered tasks, errors of workers."""
