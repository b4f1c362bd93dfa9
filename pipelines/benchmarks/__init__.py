"""What stages cost, each beside what it could be made of instead. Run by hand; the numbers are ratios in one run."""
