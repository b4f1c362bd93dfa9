"""Scores of pictures: the papers' metrics, LAION's aesthetic score, and the safety score."""
