-- One row for each namespace wanted: its latest checkpoint, as the upstream saver selects it, and the pending writes of
-- newer checkpoints that are not there yet (a run saves both in the background, in either order). All in one snapshot.
-- And the thread's lease, if it has one. Of a root that has neither, also whether any other namespace of its thread has something.
select
    latest.*, early.writes as early_writes, wanted.position,
    case when wanted.of_namespace = '' and latest.checkpoint_id is null and early.writes is null then
        not exists (select from checkpoints where thread_id = wanted.of_thread)
        and not exists (select from checkpoint_writes where thread_id = wanted.of_thread)
    end as thread_is_empty,
    lease.token as lease_token, lease.position as lease_position
from /* the namespaces */ as wanted (of_thread, of_namespace, position)
left join lateral (
    /* the upstream saver's SELECT_SQL */
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
left join /* the leases */ as lease on lease.thread_id = wanted.of_thread
