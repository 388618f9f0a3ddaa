"""The distribution: likelihoods, networks, objectives, the training loop, the estimator and its files."""
