-- Deletes threads. Returns how many rows that were, and those of the threads that were not idle after all: they had a
-- checkpoint made since, or one whose id no time can be read from. For those it is to be undone.
with deleted_checkpoints as (
    delete from checkpoints where thread_id = any(%(threads)s) returning thread_id, checkpoint_id
), deleted_blobs as (
    delete from checkpoint_blobs where thread_id = any(%(threads)s) returning 1
), deleted_writes as (
    delete from checkpoint_writes where thread_id = any(%(threads)s) returning 1
)
select
    (select count(*) from deleted_checkpoints) as checkpoints,
    (select count(*) from deleted_blobs) as blobs,
    (select count(*) from deleted_writes) as writes,
    array(
        select distinct thread_id from deleted_checkpoints
        where checkpoint_id >= %(since)s or checkpoint_id !~ %(dated)s
    ) as not_idle
