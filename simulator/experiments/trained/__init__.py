"""The experiments' training, in torch: one file an experiment, each with a function `train`."""
