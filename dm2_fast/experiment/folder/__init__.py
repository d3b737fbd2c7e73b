"""The folder that a run leaves behind, and the files in it."""
