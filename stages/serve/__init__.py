"""The command `serve`: the registry's champion behind HTTP, on Ray Serve."""
