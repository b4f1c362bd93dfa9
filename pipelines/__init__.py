"""Which stages there are, how they depend on one another, and how a run is carried out."""
