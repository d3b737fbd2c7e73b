"""A strategy of ours inside the packages that people use: one file each, imported only by those who use it."""
