"""Behind `dmdd_lite.reproduce`: `jobs` (one category and seed, in a process of its own), `schedule` (many of
them on this machine), `cluster` (over Dask), `board` (the live table)."""
