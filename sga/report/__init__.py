"""Finished runs side by side: pages that need nothing else, charts and tables of them."""
