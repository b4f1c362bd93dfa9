"""How a plan is carried out: the runner, a stage in its own process, cleanup, the environment."""
