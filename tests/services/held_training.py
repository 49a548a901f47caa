"""A training that waits in the middle of its third epoch, so that a test can stop or end it there."""

from __future__ import annotations

EPOCHS = 2
"""That are done by then."""

HOLD = f"""
from bcc_ops.training import fit
run_epoch = fit._Trainer.run_epoch
def held(self, reached):
    watch = self.watch
    if reached.epochs == {EPOCHS}:
        end_of_batch = watch.on_train_batch_end
        watch.on_train_batch_end = lambda batch, logs=None: (watch._stop.wait(), end_of_batch(batch, logs))
    return run_epoch(self, reached)
fit._Trainer.run_epoch = held
"""
"""Code for the process that is to train, before it begins. It waits until it is told to stop, for ever if nobody does."""
