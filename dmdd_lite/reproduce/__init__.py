"""The whole table: notebook 05 for every category and seed, as futures of `dask.distributed`."""
