-- Checkpoints. These statements are on the hot path: their parameters are numbered by position.

-- name: latest
-- Load the latest checkpoint of each namespace, one row for each, in one snapshot:
--   - the checkpoint, as the upstream saver selects it;
--   - pending writes of newer checkpoints, whose own rows are still to come (a run saves both in either order);
--   - the thread's lease, if it has one;
--   - for a root namespace without either, whether every other namespace of its thread is empty too;
--   - whether this is a standby, or another Postgres than the caller knows: then it must not become the entry.
--
-- {select} is the upstream saver's SELECT_SQL, {namespaces} and {leases} are one of the statements below; {differs} is
-- a condition of `identity.py`.
select
    pg_is_in_recovery() as is_standby, {differs} as differs,
    latest.*, early.writes as early_writes, wanted.position,
    case when wanted.of_namespace = '' and latest.checkpoint_id is null and early.writes is null then
        not exists (select from checkpoints where thread_id = wanted.of_thread)
        and not exists (select from checkpoint_writes where thread_id = wanted.of_thread)
    end as thread_is_empty,
    lease.token as lease_token, lease.position as lease_position
from {namespaces} as wanted (of_thread, of_namespace, position)
left join lateral (
    {select}
    where thread_id = wanted.of_thread and checkpoint_ns = wanted.of_namespace
    order by checkpoint_id desc limit 1
) as latest on true
left join lateral (
    select array_agg(array[
        convert_to(checkpoint_id, 'UTF8'), convert_to(task_id, 'UTF8'), convert_to(channel, 'UTF8'),
        convert_to(type, 'UTF8'), blob, convert_to(task_path, 'UTF8'), idx::text::bytea
    ]) as writes
    from checkpoint_writes
    where thread_id = wanted.of_thread and checkpoint_ns = wanted.of_namespace
      and checkpoint_id > coalesce(latest.checkpoint_id, '')
) as early on true
left join {leases} as lease on lease.thread_id = wanted.of_thread

-- name: one_namespace
-- Name the namespace of `latest`, when there is one.
(select %s::text, %s::text, 1)

-- name: many_namespaces
-- Name the namespaces of `latest`, when there are several.
unnest(%s::text[], %s::text[]) with ordinality

-- name: leases_of_prefix
-- Join the leases of a prefix to `latest`.
(select * from checkpoint_cache_leases where prefix = %s)

-- name: no_leases
-- Join no leases to `latest`, where their table is missing.
(select null as thread_id, null as token, null as position where %s::text is null)

-- name: store
-- Insert rows of several tables at once, {others} and {last}, under {guard}. Return the number of rows of the last.
with {others}last_part as ({last} returning 1)
select {guard} as guarded, (select count(*) from last_part) as inserted

-- name: find_values
-- Find the values that are stored already under some channels and versions of a namespace.
select from checkpoint_blobs
where thread_id = %s and checkpoint_ns = %s
  and (channel, version) in (select * from unnest(%s::text[], %s::text[]))
