-- Whether two threads differ in anything but their names.
with
source_checkpoints as (
    select checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    from checkpoints where thread_id = %(source)s
), target_checkpoints as (
    select checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    from checkpoints where thread_id = %(target)s
), source_writes as (
    select checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
    from checkpoint_writes where thread_id = %(source)s
), target_writes as (
    select checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
    from checkpoint_writes where thread_id = %(target)s
), source_blobs as (
    select checkpoint_ns, channel, version, type, blob from checkpoint_blobs where thread_id = %(source)s
), target_blobs as (
    select checkpoint_ns, channel, version, type, blob from checkpoint_blobs where thread_id = %(target)s
)
select
    exists (select * from source_checkpoints except select * from target_checkpoints)
    or exists (select * from target_checkpoints except select * from source_checkpoints)
    or exists (select * from source_writes except select * from target_writes)
    or exists (select * from target_writes except select * from source_writes)
    or exists (select * from source_blobs except select * from target_blobs)
    or exists (select * from target_blobs except select * from source_blobs) as differ
