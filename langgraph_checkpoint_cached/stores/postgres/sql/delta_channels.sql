-- The `DeltaChannel`s of some threads, by namespace. They leave counters in the metadata, or a snapshot: `true` in the
-- checkpoint with a blob behind it, which a plain `true` never has. Those of LangGraph.js leave a mark only, which
-- does not say which channels they are: then `channel` is null.
select distinct c.thread_id, c.checkpoint_ns, counted.channel
from checkpoints c
cross join lateral jsonb_object_keys(case jsonb_typeof(c.metadata -> 'counters_since_delta_snapshot')
    when 'object' then c.metadata -> 'counters_since_delta_snapshot' else '{}'
end) as counted (channel)
where c.thread_id = any(%(threads)s)
union
select c.thread_id, c.checkpoint_ns, v.key
from checkpoints c
cross join lateral jsonb_each(c.checkpoint -> 'channel_values') as v
cross join lateral (
    select from checkpoint_blobs b
    where b.thread_id = c.thread_id and b.checkpoint_ns = c.checkpoint_ns and b.channel = v.key
      and b.version = c.checkpoint -> 'channel_versions' ->> v.key
    limit 1
) as snapshot
where c.thread_id = any(%(threads)s) and v.value = 'true'::jsonb
union
select thread_id, checkpoint_ns, null from checkpoints
where thread_id = any(%(threads)s) and metadata ? 'delta_writes_versioned'
