"""Methods x tasks x seeds, as data, in processes, and what came of them."""
