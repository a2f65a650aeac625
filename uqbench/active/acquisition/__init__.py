"""Ways to propose structures for labelling."""
