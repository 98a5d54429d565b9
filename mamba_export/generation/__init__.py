"""Text from any session: decoding, sampling, results. Knows no runtime."""
