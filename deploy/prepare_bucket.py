"""Wait for the configured buckets, and make it where `CREATE_BUCKET=true` says that this deployment owns its S3 server.

The credentials of a run may not make buckets (deploy/iam-policy.json); against a real S3 this only looks, and says in
one line what is missing.
"""

from __future__ import annotations

import os
import sys
import time

from bcc_ops.exceptions import BccError, BucketNotFound, StorageUnavailable, UnsafeStore
from bcc_ops.instances import Instance, read_instances
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.operators.base import open_store
from bcc_ops.runs.object_store import ObjectStore

PATIENCE = 120.0
"""Seconds for an S3 server that starts at the same time."""


def prepare(store: ObjectStore, create: bool, patience: float = PATIENCE, models_prefix: str = "models") -> str:
    """Make sure that the bucket is there, and return a sentence that says how it was found.

    Args:
        store: the bucket.
        create: make it, with versions, where it is missing.
        patience: seconds to wait for a store that does not answer.
        models_prefix: where versions are stored, to probe conditional writes.

    Raises:
        BucketNotFound: it is missing, and `create` is off.
        StorageUnavailable: the store did not answer in time.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            versioned = store.is_versioned()
        except StorageUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
        except BucketNotFound:
            if not create:
                raise
            store.client.create_bucket(Bucket=store.bucket)
            # With versions, a past as_of is exact, and an overwritten image can be had back.
            store.client.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"})
            return f"made the bucket {store.bucket}, with versions"
        else:
            versions = "keeps versions" if versioned else "keeps no versions: a past as_of will not be exact"
            return f"the bucket {store.bucket} is there and {versions}; {probe(store, models_prefix)}"


def probe(store: ObjectStore, models_prefix: str) -> str:
    """Say whether models can be promoted in this store, which needs conditional writes."""
    try:
        ModelRegistry(store, models_prefix).require_conditional_writes()
    except UnsafeStore as error:
        return f"warning: {error}"
    return "it honours conditional writes"


def main() -> int:
    """Prepare the bucket of each instance. Exit status 1: one is not ready, in one line."""
    try:
        return max([prepare_instance(instance) for instance in read_instances()])
    except BccError as error:
        print(f"prepare_bucket: {error}", file=sys.stderr)
        return 1


def prepare_instance(instance: Instance) -> int:
    """Prepare an instance's bucket. Returns 1 if the only one is not ready: one of several stops no other."""
    try:
        settings = instance.settings
        create = os.environ.get("CREATE_BUCKET") == "true"
        print(prepare(open_store(settings), create=create, models_prefix=settings.models_prefix))
    except BccError as error:
        print(f"prepare_bucket: {error}", file=sys.stderr)
        return 0 if instance.name else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
