"""What a token costs against the length of the text: Mamba, Mamba-2 and a Transformer, by tools/run_cost.py."""
