"""Normal data: embedding and search, selection, checks, text written by a language model, and quality to dial down."""
