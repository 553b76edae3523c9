"""Where a model comes from (pretrained, small, adapters, combinations of models) and how it is sharded."""
