"""The command `serve`: the registry's champion, or the shipped model, behind HTTP, on Ray Serve."""
