"""The execution of a plan: the runner, a process for each stage, cleanup, the environment."""
