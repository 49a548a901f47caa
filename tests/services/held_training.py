"""A training that waits in the middle of its third epoch, so that a test can end it there."""

from __future__ import annotations

EPOCHS = 2
"""That are done by then."""

HOLD = f"""
import threading
from bcc_ops.training import fit
run_epoch = fit._Trainer.run_epoch
def held(self, reached):
    if reached.epochs == {EPOCHS}:
        self.watch.on_train_batch_end = lambda *of_a_batch: threading.Event().wait()
    return run_epoch(self, reached)
fit._Trainer.run_epoch = held
"""
"""Code for the process that is to train, before it begins."""
