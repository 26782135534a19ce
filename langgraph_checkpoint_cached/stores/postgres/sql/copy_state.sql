-- Whether the source of a copy has anything, and its target.
select
    exists (select from checkpoints where thread_id = %(source)s)
        or exists (select from checkpoint_writes where thread_id = %(source)s) as source,
    exists (select from checkpoints where thread_id = %(target)s)
        or exists (select from checkpoint_blobs where thread_id = %(target)s)
        or exists (select from checkpoint_writes where thread_id = %(target)s) as target
