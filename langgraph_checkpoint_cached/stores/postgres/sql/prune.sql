-- Prunes of threads with a `DeltaChannel`.

-- name: one_snapshot
-- Have all statements of the transaction read one snapshot.
set transaction isolation level repeatable read

-- name: prune_heads
-- Find the latest checkpoint of each namespace of a thread, with the parent if that one holds its pending sends,
-- as it does before format 4. `over` tells that the namespace belongs to a call of a subgraph that started from an
-- older root checkpoint than the latest, one that is saved: then the namespace is deleted as a whole.
with heads as (
    select distinct on (checkpoint_ns) checkpoint_ns, checkpoint_id
    from checkpoints where thread_id = %(thread)s
    order by checkpoint_ns desc, checkpoint_id desc
)
select heads.checkpoint_ns, array_remove(array[c.checkpoint_id, case when (c.checkpoint ->> 'v')::int < 4 then
    (
        select w.checkpoint_id from checkpoint_writes w
        where w.thread_id = c.thread_id and w.checkpoint_ns = c.checkpoint_ns
          and w.checkpoint_id = c.parent_checkpoint_id and w.channel = '__pregel_tasks'
        limit 1
    )
end], null) as checkpoint_ids,
strpos(heads.checkpoint_ns, ':') > 0 and exists (
    select from checkpoints root
    where root.thread_id = %(thread)s and root.checkpoint_ns = ''
      and root.checkpoint_id = c.metadata -> 'parents' ->> ''
      and root.checkpoint_id <> (select checkpoint_id from heads where checkpoint_ns = '')
) as over
from heads
cross join lateral (
    select * from checkpoints
    where thread_id = %(thread)s and checkpoint_ns = heads.checkpoint_ns and checkpoint_id = heads.checkpoint_id
    limit 1
) as c

-- name: other_checkpoints
-- Find the checkpoints of a namespace but those given.
select checkpoint_id from checkpoints
where thread_id = %(thread)s and checkpoint_ns = %(ns)s and checkpoint_id <> all(%(ids)s)
