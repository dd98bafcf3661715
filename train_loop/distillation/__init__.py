"""Learning from a larger model: what a teacher answers to the rows, and students made from some of a model's parts."""
