"""The command `doctor`: what would stop a run, found before hours are spent. A module for each subject."""
