"""Small models in the style of the projects that call mamba_ssm and causal_conv1d, written for these tests.

Each calls the functions in the way of its family (docs/your-own-model.md names them); ``catalogue`` lists them.
"""
