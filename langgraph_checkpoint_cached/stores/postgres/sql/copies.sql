-- Copies of threads.

-- name: lock_copy_target
-- Let one copy at a time go to a thread.
select pg_advisory_xact_lock(hashtextextended(%(target)s, 4711))

-- name: copy_state
-- Tell whether the source and the target of a copy have anything.
select
    exists (select from checkpoints where thread_id = %(source)s)
        or exists (select from checkpoint_writes where thread_id = %(source)s) as source,
    exists (select from checkpoints where thread_id = %(target)s)
        or exists (select from checkpoint_blobs where thread_id = %(target)s)
        or exists (select from checkpoint_writes where thread_id = %(target)s) as target

-- name: threads_differ
-- Tell whether two threads differ in anything but their ids.
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

-- name: copy_thread
-- Copy a thread under another id: its checkpoints, the values of their channels, and pending writes. One
-- statement, so one snapshot of the source; no row passes through the client.
with copied_checkpoints as (
    insert into checkpoints
        (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
    select %(target)s, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    from checkpoints where thread_id = %(source)s
), copied_blobs as (
    insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    select %(target)s, checkpoint_ns, channel, version, type, blob
    from checkpoint_blobs where thread_id = %(source)s
)
insert into checkpoint_writes
    (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
select %(target)s, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
from checkpoint_writes where thread_id = %(source)s
