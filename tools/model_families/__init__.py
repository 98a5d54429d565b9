"""Third-party Mamba models, exported as their repositories have them; see tools/families.py."""
