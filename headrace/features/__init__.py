"""Features: one transform for training, refreshes and requests; point-in-time joins; an online store and readers."""
