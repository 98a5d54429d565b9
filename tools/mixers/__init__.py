"""Models to compare Mamba with: other sequence mixers, in the blocks of the papers, for the tasks of ``tasks``."""
