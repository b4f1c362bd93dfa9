"""Stage `customize`: one concept from a few pictures."""
