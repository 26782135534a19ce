-- How many rows threads have.
select
    (select count(*) from checkpoints where thread_id = any(%(threads)s)) as checkpoints,
    (select count(*) from checkpoint_blobs where thread_id = any(%(threads)s)) as blobs,
    (select count(*) from checkpoint_writes where thread_id = any(%(threads)s)) as writes
