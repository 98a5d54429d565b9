"""Models to compare Mamba with: other sequence mixers, for the tasks of ``tasks``."""
