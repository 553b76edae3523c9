"""From groups to batches of token ids: templates, encoding, collation, the loader, packed rows."""
