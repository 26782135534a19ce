-- Deletes threads.
with deleted_checkpoints as (
    delete from checkpoints where thread_id = any(%(threads)s)
), deleted_blobs as (
    delete from checkpoint_blobs where thread_id = any(%(threads)s)
)
delete from checkpoint_writes where thread_id = any(%(threads)s)
