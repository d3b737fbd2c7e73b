"""The data sets of an experiment."""
