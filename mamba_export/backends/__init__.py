"""What runs an exported folder: a folder a runtime, none of which imports another."""
