-- Deletes namespaces of a thread.
with deleted_checkpoints as (
    delete from checkpoints where thread_id = %(thread)s and checkpoint_ns = any(%(namespaces)s)
), deleted_blobs as (
    delete from checkpoint_blobs where thread_id = %(thread)s and checkpoint_ns = any(%(namespaces)s)
)
delete from checkpoint_writes where thread_id = %(thread)s and checkpoint_ns = any(%(namespaces)s)
