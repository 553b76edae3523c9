"""Sources of models (pretrained, small, adapters, combinations of models), and sharding."""
