"""The contracts of the pipeline, one component in each file."""
