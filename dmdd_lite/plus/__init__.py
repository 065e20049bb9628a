"""DMDD+: what we add to the paper's method. `statistics` holds per-position Gaussian statistics of teacher
features (PaDiM), `mix` the map `plus`. All of it is ours [ours]."""
