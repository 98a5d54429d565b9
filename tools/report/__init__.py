"""The report: what Mamba is for, shown through exported files. ``record.py`` has what it is made of."""
