"""Batches of token ids from groups: templates, encoding, collation, the loader, packed rows."""
