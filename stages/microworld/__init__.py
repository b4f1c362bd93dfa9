"""Stage `microworld`: a small web of captioned pictures, turn-tables, and held-out subjects."""
