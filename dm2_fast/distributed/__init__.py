"""One pool over many processes: neighbours and choices that are those of one process, bit for bit."""
