"""The record of a run: documents, paths, the object store, tables, the index of runs and their history."""
