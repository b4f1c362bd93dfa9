"""Stage `ingest`: pictures from the web by img2dataset."""
