"""The training loop: config, batch, learner, trainer, background, evaluation."""
