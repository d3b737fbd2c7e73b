"""`dm2-fast select`: the next samples to label, from files of one's own."""
