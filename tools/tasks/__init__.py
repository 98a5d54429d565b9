"""Small tasks of the Mamba papers: data made as it is needed, training and evaluation.

``tools/train_task.py`` is the command line.
"""
