"""A training by several replicas of a model, which may be taken to any number of processes."""
