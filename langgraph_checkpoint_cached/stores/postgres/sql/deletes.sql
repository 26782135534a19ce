-- Deletes of threads, of namespaces and of checkpoints.

-- name: delete_threads
-- Delete threads.
with deleted_checkpoints as (
    delete from checkpoints where thread_id = any(%(threads)s)
), deleted_blobs as (
    delete from checkpoint_blobs where thread_id = any(%(threads)s)
)
delete from checkpoint_writes where thread_id = any(%(threads)s)

-- name: delete_namespaces
-- Delete namespaces of a thread.
with deleted_checkpoints as (
    delete from checkpoints where thread_id = %(thread)s and checkpoint_ns = any(%(namespaces)s)
), deleted_blobs as (
    delete from checkpoint_blobs where thread_id = %(thread)s and checkpoint_ns = any(%(namespaces)s)
)
delete from checkpoint_writes where thread_id = %(thread)s and checkpoint_ns = any(%(namespaces)s)

-- name: delete_checkpoints
-- Delete checkpoints of a namespace. Return the channels and versions that they named.
with deleted as (
    delete from checkpoints
    where thread_id = %(thread)s and checkpoint_ns = %(ns)s and checkpoint_id = any(%(ids)s)
    returning checkpoint -> 'channel_versions' as versions
)
select distinct named.key as channel, named.value as version
from deleted cross join lateral jsonb_each_text(deleted.versions) as named

-- name: orphan_checkpoints
-- Detach checkpoints whose parent has been deleted. Return their ids.
update checkpoints set parent_checkpoint_id = null
where thread_id = %(thread)s and checkpoint_ns = %(ns)s and parent_checkpoint_id = any(%(ids)s)
returning checkpoint_id

-- name: delete_writes
-- Delete the pending writes of checkpoints of a namespace. It goes by what is deleted, not by what is left: a run
-- saves checkpoints and writes in the background, in either order.
delete from checkpoint_writes
where thread_id = %(thread)s and checkpoint_ns = %(ns)s and checkpoint_id = any(%(ids)s)

-- name: named_versions
-- Find the channels and versions that a namespace's checkpoints name.
select distinct named.key as channel, named.value as version
from checkpoints c cross join lateral jsonb_each_text(c.checkpoint -> 'channel_versions') as named
where c.thread_id = %(thread)s and c.checkpoint_ns = %(ns)s

-- name: delete_blobs
-- Delete values of a channel.
delete from checkpoint_blobs
where thread_id = %(thread)s and checkpoint_ns = %(ns)s and channel = %(channel)s and version = any(%(versions)s)
