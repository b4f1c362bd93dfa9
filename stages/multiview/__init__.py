"""Stage `multiview`: view pairs of one object."""
