"""Stage `evaluate`: pictures of held-out subjects, their scores, and the report."""
