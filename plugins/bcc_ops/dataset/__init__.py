"""Which images a run is about: listed, fetched, checked, grouped and split."""
