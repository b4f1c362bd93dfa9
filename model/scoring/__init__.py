"""Scores of pictures: the metrics of the papers, LAION's aesthetic score, and safety."""
