"""DMDD+: what we add to the paper's method, on top of a trained DMDD. All of it is ours [ours].

`statistics` holds per-position Gaussian statistics of teacher features on good images (PaDiM), `fusion` the
map `plus`, which mixes their map with DMDD's fused map. DMDD itself never imports this package.
"""
