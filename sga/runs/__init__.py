"""Run folders: what stands in them, read and written; logs and references of other runs and programs."""
