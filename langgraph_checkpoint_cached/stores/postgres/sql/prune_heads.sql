-- Of each namespace of a thread its latest checkpoint; with the parent, if that one holds its pending sends, as it does
-- for checkpoints of a format before the fourth. `over` is whether the namespace belongs to a call of a subgraph that
-- started from an older checkpoint of the root than the latest, one that is saved: then it goes as a whole.
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
